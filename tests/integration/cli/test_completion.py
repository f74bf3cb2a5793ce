"""Shell completion: live names from files, and a real bash that uses them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.cli.instance import Instance
from tests.support.processes import command, environment, run


def words(shared: Instance, *typed: str) -> list[str]:
    """What may stand in the place of the last word typed."""
    ended = shared.cli("completion", "words", "--", *typed)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_commands_and_options_come_from_the_table(shared: Instance) -> None:
    """Commands first, then the options of the command and those of all."""
    assert words(shared, "li") == ["list-agents", "list-locks", "list-requests"]
    assert words(shared, "run", "--lo") == ["--lock-wait"]
    assert words(shared, "--js") == ["--json"]
    assert "--gather" not in words(shared, "ping", "--")
    assert words(shared, "--json", "--config", str(shared.conf), "pin") == ["ping"]


def test_hosts_come_from_the_registry_and_are_not_offered_twice(shared: Instance) -> None:
    """`run HOST... SCRIPT`: each word may be another host."""
    assert words(shared, "ping", "web") == ["web-01", "web-02"]
    assert words(shared, "ping", "web-01", "web") == ["web-02"]
    assert words(shared, "ping", "-x", "web") == ["web-01", "web-02"]


def test_scripts_come_from_what_agents_reported(shared: Instance) -> None:
    """After a discovery its script names are known, without asking anyone again."""
    shared.document("discovery", "web-01")
    assert "hello" in words(shared, "run", "web-01", "")
    assert words(shared, "run", "web-01", "--timeout", "5", "he") == ["hello"]


def test_values_of_options(shared: Instance) -> None:
    """Choices, files, or nothing where anything may stand."""
    assert words(shared, "run", "--encoding", "") == ["base64", "utf-8"]
    assert words(shared, "--config", "") == ["@files"]
    assert words(shared, "run", "--timeout", "") == []
    assert words(shared, "completion", "") == ["bash", "fish", "words", "zsh"]
    assert words(shared, "run", "web-01", "hello", "--", "") == []
    assert words(shared, "status", "zz") == []


def test_records_are_offered_to_status(shared: Instance) -> None:
    """The ids of runs that are still kept."""
    reqid = shared.document("run", "web-01", "deploy")["reqid"]
    assert words(shared, "status", reqid[:6]) == [reqid]


def test_waiting_requests_are_offered_to_the_approver(shared: Instance) -> None:
    """By id and by name, as `approve` and `deny` take them; nothing else of the queue."""
    queue = shared.home / "state" / "pairing"
    (queue / "requests").mkdir(parents=True)
    (queue / "heartbeat.json").write_text("{}")
    (queue / "requests" / "00112233445566aa.json").write_text('{"hostname": "new-01"}')
    (queue / "requests" / "00112233445566bb.json").write_text("[]")
    assert words(shared, "approve", "") == ["00112233445566aa", "00112233445566bb", "new-01"]
    assert words(shared, "deny", "new") == ["new-01"]


def test_what_a_service_that_was_taken_over_writes_is_never_run(shared: Instance, tmp_path: Path) -> None:
    """Root presses Tab, and the service user writes state: nothing of it reaches root's shell but names."""
    mark = tmp_path / "run-by-the-shell"
    evil = [f"$(touch {mark})", f"`touch {mark}`", "a;b", "a\nb", "*"]
    contacts = shared.home / "state" / "state"
    contacts.mkdir(exist_ok=True)
    (contacts / "evil.json").write_text(json.dumps({"scripts": [*evil, "harmless"]}))
    (shared.home / "state" / "locks" / "evil" / f"$(touch {mark})".replace("/", "")).mkdir(parents=True)
    offered = words(shared, "run", "web-01", "")
    assert "harmless" in offered
    assert not set(offered) & {*evil, "a", "b"}
    assert not [word for word in offered if "$" in word]
    program = tmp_path / "ctrl-exec"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '$(touch {mark})' 'word'\n")
    program.chmod(0o755)
    driver = """
        source "$1"
        COMP_WORDS=(ctrl-exec run web-01 ""); COMP_CWORD=3
        _ctrl_exec
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    script = tmp_path / "completion.bash"
    script.write_text(run("ctrl-exec", "completion", "bash").stdout)
    ended = subprocess.run(
        ["bash", "-c", driver, "bash", str(script)],
        env=environment({"PATH": f"{tmp_path}:/usr/bin:/bin"}), capture_output=True, text=True, check=True,
    )  # fmt: skip
    quoted = (
        f"$(touch {mark})".replace("$", "\\$").replace("(", "\\(").replace(")", "\\)").replace(" ", "\\ ")
    )
    assert ended.stdout == f"{quoted}\nword\n"
    assert not mark.exists()


def test_a_broken_configuration_means_fewer_words_not_an_error(tmp_path: Path) -> None:
    """A Tab must never print an error."""
    (tmp_path / "c.conf").write_text("nonsense\n")
    for conf in (tmp_path / "c.conf", tmp_path / "none"):
        ended = run("ctrl-exec", "--config", conf, "completion", "words", "--", "ping", "we")
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_typed_configuration_is_the_one_asked(shared: Instance) -> None:
    """`ctrl-exec --config C ping <Tab>` offers the hosts of C."""
    for typed in (["--config", str(shared.conf)], [f"--config={shared.conf}"]):
        ended = run("ctrl-exec", "completion", "words", "--", *typed, "ping", "web")
        assert ended.stdout.split() == ["web-01", "web-02"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_its_own_parser_takes(shell: str, tmp_path: Path) -> None:
    """Checked with the shell itself where it is installed; as a document with --json."""
    ended = run("ctrl-exec", "completion", shell)
    assert ended.returncode == 0
    assert "ctrl-exec completion words --" in ended.stdout
    assert json.loads(run("ctrl-exec", "completion", shell, "--json").stdout)["script"] == ended.stdout
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(ended.stdout)
        assert subprocess.run([shell, "-n", str(path)], check=False).returncode == 0


def test_bash_completes(shared: Instance, tmp_path: Path) -> None:
    """In a real bash: hosts, options, files, and words with an equals sign."""
    program = tmp_path / "ctrl-exec"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command("ctrl-exec"))} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "some-file").touch()
    driver = """
        source <(ctrl-exec completion bash)
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _ctrl_exec; echo "${COMPREPLY[*]}"; }
        ask ctrl-exec ping web
        ask ctrl-exec run web-01 --gat
        ask ctrl-exec --config some
        ask ctrl-exec pairing-mode st
        complete -p ced ctrl-exec
    """
    shell = environment({"PATH": f"{tmp_path}:{os.environ['PATH']}", "CTRL_EXEC_CONFIG": str(shared.conf)})
    ended = subprocess.run(
        ["bash", "-c", driver],
        env=shell,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ended.stdout.splitlines() == [
        "web-01 web-02", "--gather", "some-file", "start stop",
        "complete -F _ctrl_exec ced", "complete -F _ctrl_exec ctrl-exec",
    ]  # fmt: skip
