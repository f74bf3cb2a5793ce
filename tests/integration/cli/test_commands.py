"""`ctrl-exec` as a process: exit codes, tables, one JSON document in every case, words on errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ctrl_exec import __version__
from ctrl_exec.cli.main import MODULES
from tests.integration.cli.instance import Instance
from tests.support.forked import forked_cli
from tests.support.polling import eventually
from tests.support.processes import run


def test_version_alone_and_as_json(shared: Instance) -> None:
    """The quick path and the document."""
    assert shared.cli("--version").stdout == f"ctrl-exec {__version__}\n"
    assert run("ctrl-exec", "--version").stdout == f"ctrl-exec {__version__}\n"
    assert shared.document("--version") == {"ok": True, "version": __version__}


def test_help_lists_every_command_and_explains_each(tmp_path: Path) -> None:
    """Every summary, every option with a meaning; no command without help."""
    ended = run("ctrl-exec", "help")
    assert ended.returncode == 0
    for name in MODULES:
        assert re.search(rf"^  {name} ", ended.stdout, re.M), name
        explained = forked_cli(tmp_path, name, "--help")
        assert explained.returncode == 0
        assert explained.stdout.startswith(
            f"usage: ctrl-exec {name}" if name != "help" else "usage: ctrl-exec"
        )
        assert max(map(len, explained.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "detail"),
    [
        ([], "no command given; `ctrl-exec help` lists them"),
        (["pign", "web-01"], "unknown command 'pign' (did you mean ping?); `ctrl-exec help` lists them all"),
        (["maintain", "x"], f"maintain is not part of version {__version__}"),
        (["ping"], "missing HOST: name the hosts, or give --all or -t TAG=VALUE"),
        (["run"], "missing SCRIPT"),
        (["run", "deploy"], "missing HOST: name the hosts before the script, or give --all or -t TAG=VALUE"),
        (["run", "web-01", "deploy", "--frce"], "unknown option --frce"),
        (["run", "web-01", "deploy", "--port", "0"], "--port: expected a whole number from 1 to 65535, not '0'"),
        (["run", "web-01", "deploy", "--timeout", "0"], "--timeout: expected 1 to 604800 seconds, not '0'"),
        (["run", "-t", "role", "deploy"], "--tag: expected TAG=VALUE, not 'role'"),
        (["status"], "missing ID"),
        (["list-locks", "now"], "unexpected 'now'"),
        (["--nonsense", "ping", "a"], "unknown option --nonsense before the command; options of one command go after it"),
        (["ping", "web-01", "--token-file", "/nonexistent"], "--token-file /nonexistent: No such file or directory"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_2_and_named(shared: Instance, words: list[str], detail: str) -> None:
    """The message on stderr, the document with --json, nothing started."""
    ended = shared.cli(*words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"ctrl-exec: {detail}\n")
    assert shared.document(*words, code=2) == {"ok": False, "error": "usage", "detail": detail}


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["run", "web-01", "../x"], 2, "bad request"),
        (["run", "web-01:99999", "x"], 2, "bad request"),
        (["run", "web-01", "x", "--", *["a"] * 1025], 2, "bad request"),
        (["run", "nobody", "x"], 1, "unknown agent"),
        (["ping", "nobody", "web-01"], 1, "unknown agent"),
        (["discovery", "@role=db"], 1, "unknown agent"),
        (["status", "zz"], 2, "bad request"),
        (["status", "0123456789abcdef"], 1, "not found"),
    ],
)
def test_every_error_is_one_document(shared: Instance, words: list[str], code: int, error: str) -> None:
    """`{"ok": false, "error", "detail"}` and the exit code of the class."""
    found = shared.document(*words, code=code)
    assert (found["ok"], found["error"]) == (False, error)
    assert found["detail"]
    ended = shared.cli(*words)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert "Traceback" not in ended.stderr


def test_a_wrong_configuration_is_exit_2_with_its_line(tmp_path: Path) -> None:
    """File, line, expectation; as a document with path and line."""
    path = tmp_path / "c.conf"
    path.write_text("# x\nread_timeout = soon\n")
    ended = run("ctrl-exec", "--config", path, "list-locks")
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"ctrl-exec: {path}:2: read_timeout = 'soon': expected seconds")
    found = json.loads(run("ctrl-exec", "check-config", "--json", "--config", path).stdout)
    assert (found["error"], found["path"], found["line"]) == ("configuration", str(path), 2)
    missing = run("ctrl-exec", "list-locks", "--config", tmp_path / "none")
    assert (missing.returncode, missing.stderr.split("\n")[0]) == (
        2,
        f"ctrl-exec: {tmp_path}/none: no such file",
    )


def test_the_configuration_comes_from_the_environment_too(shared: Instance) -> None:
    """CTRL_EXEC_CONFIG, unless --config is given."""
    ended = run("ctrl-exec", "list-locks", env={"CTRL_EXEC_CONFIG": str(shared.conf)})
    assert ended.returncode == 0, ended.stderr
    both = run("ctrl-exec", "list-locks", "--config", "/none", env={"CTRL_EXEC_CONFIG": str(shared.conf)})
    assert both.returncode == 2


def test_check_config_shows_what_applies(shared: Instance) -> None:
    """One line for people; every setting with --json."""
    assert shared.cli("check-config").stdout == f"{shared.conf} is correct\n"
    found = shared.document("check-config")
    assert found["settings"]["connect_timeout"] == 30
    assert found["settings"]["pairing_rate_limit"] == [60, 60, 60]


def test_a_run_prints_each_host_in_the_order_asked(shared: Instance) -> None:
    """Header, output, stderr behind its mark; exit 1 as one of them failed."""
    ended = shared.cli("run", "bad-01", "web-01", "deploy", "--", "--now")
    assert ended.returncode == 1
    text = re.sub(r"\d+ms", "MS", re.sub(r"req:[0-9a-f]{16}", "req:ID", ended.stdout))
    assert text == (
        "==> bad-01  [FAIL  exit:3  MS  req:ID]\nout\n    STDERR: wrong\n    STDERR: worse\n"
        "==> web-01  [OK  exit:0  MS  req:ID]\nhello\n"
    )
    sent = shared.fleet.requests("web-01")[-1]
    assert sent["body"]["args"] == ["--now"]


def test_a_run_as_json_is_the_answer_of_the_api(shared: Instance) -> None:
    """ok, reqid, results; hosts where a pattern was used."""
    plain = shared.document("run", "web-01", "deploy")
    assert set(plain) == {"ok", "reqid", "results"}
    assert re.fullmatch(r"[0-9a-f]{16}", plain["reqid"])
    (result,) = plain["results"]
    assert set(result) == {"host", "script", "exit", "stdout", "stderr", "rtt", "reqid", "state"}
    expanded = shared.document("run", "-t", "role=web", "deploy")
    assert expanded["hosts"] == ["web-01", "web-02"]


def test_targets_from_options(shared: Instance) -> None:
    """--all, -t and -x are patterns that no shell expands."""
    found = shared.document("ping", "-t", "role=web", "-x", "web-01")
    assert [each["host"] for each in found["results"]] == ["web-02"]


def test_output_that_is_alike_is_gathered_above_ten_hosts(shared: Instance) -> None:
    """One header for many; --no-gather shows each; --gather does it for few."""
    gathered = shared.cli("run", "n[01-11]", "deploy")
    assert re.fullmatch(r"==> n\[01-11\]  \[OK  exit:0  11 hosts  req:\w+\]\nsame\n", gathered.stdout)
    assert shared.cli("run", "n[01-11]", "deploy", "--no-gather").stdout.count("==> n") == 11
    assert shared.cli("run", "n[01-02]", "deploy", "--gather").stdout.count("==> n") == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run", "web-01", "web-02", "deploy"], 0),
        (["run", "web-01", "bad-01", "deploy"], 1),
        (["run", "web-01", "gone", "deploy"], 1),
        (["run", "gone", "deploy", "--port", "1"], 5),
        (["run", "web-01", "web-02", "deploy", "--port", "1"], 5),
        (["ping", "web-01"], 0),
        (["ping", "web-01", "gone"], 1),
        (["ping", "web-01", "--port", "1"], 5),
        (["discovery", "web-01"], 0),
        (["discovery", "web-01", "liar"], 1),
        (["ping", "liar"], 1),
        (["discovery", "liar"], 1),
        (["discovery", "web-01", "--port", "1"], 5),
    ],
)
def test_exit_codes_tell_how_many_succeeded(shared: Instance, words: list[str], code: int) -> None:
    """0 all, 1 some not, 5 nobody reached; the same with --json."""
    assert shared.cli(*words).returncode == code
    assert shared.document(*words, code=code)["ok"] is True


def test_an_async_run_prints_its_id_and_status_shows_the_rest(shared: Instance) -> None:
    """The id alone on stdout, so that a shell can keep it."""
    started = shared.cli("run", "web-01", "deploy", "--async")
    assert started.returncode == 0
    assert re.fullmatch(r"[0-9a-f]{16}\n", started.stdout)
    reqid = started.stdout.strip()
    eventually(lambda: shared.document("status", reqid)["complete"], what="the run is complete")
    found = shared.document("status", reqid)
    assert (found["state"], found["mode"], found["pending"]) == ("completed", "async", [])
    shown = shared.cli("status", reqid)
    assert shown.stdout.startswith(f"{reqid}  completed  deploy\n1 host: 1 ok\n==> web-01  [OK")
    accepted = shared.document("run", "web-01", "deploy", "--async")
    assert accepted["async"] is True
    assert [set(each) for each in accepted["results"]] == [{"host", "script", "status", "reqid"}]


def test_a_silent_agent_is_left_and_the_run_goes_on(shared: Instance) -> None:
    """Exit 1, the reason, and how to come back."""
    ended = shared.cli("run", "slow", "wait", "--read-timeout", "1")
    assert ended.returncode == 1
    assert "    ERROR: read timeout after 1s\n" in ended.stdout
    reqid = re.search(r"req:(\w+)", ended.stdout)
    assert reqid is not None
    assert f"ctrl-exec status {reqid[1]}" in ended.stderr
    locks = shared.document("list-locks")["locks"]
    assert {"host": "slow", "script": "wait"} in locks
    locked = shared.document("run", "web-01", "slow", "wait", code=4)
    assert (locked["error"], locked["code"], locked["conflicts"]) == ("locked", 4, ["slow"])
    listed = shared.cli("list-locks").stdout.splitlines()
    assert listed[0].split() == ["HOST", "SCRIPT"]
    assert "slow  wait" in listed


def test_typos_in_hosts_are_answered_with_near_names(shared: Instance) -> None:
    """In words and in the document."""
    ended = shared.cli("ping", "wbe-01", "n1")
    assert "not registered: wbe-01, n1 (did you mean web-01" in ended.stderr
    assert shared.document("ping", "wbe-01", code=1)["agents"] == ["wbe-01"]


def test_arguments_without_dashes_are_told_where_they_belong(shared: Instance) -> None:
    """The commonest slip: `run HOST SCRIPT ARG` takes SCRIPT for a host and ARG for the script."""
    said = shared.cli("run", "web-01", "deploy", "now").stderr
    assert "not registered: deploy" in said
    assert "ctrl-exec run web-01 deploy -- now" in said
    said = shared.cli("run", "web-01", "web-02", "deploy", "to", "prod-1", "--quiet").stderr
    assert "ctrl-exec run web-01 web-02 deploy -- to prod-1" in said
    assert " -- " not in shared.cli("run", "web-01", "deploy", "now", "--", "x").stderr
    assert " -- " not in shared.cli("run", "nobody", "deploy").stderr


def test_a_missing_configuration_says_how_to_come_by_one(tmp_path: Path) -> None:
    """Before the first `make install-system`, or with a private instance and no --config."""
    ended = run("ctrl-exec", "--config", tmp_path / "none.conf", "list-agents")
    assert ended.returncode == 2
    assert f"{tmp_path}/none.conf: no such file" in ended.stderr
    assert "--config FILE or CTRL_EXEC_CONFIG" in ended.stderr


def test_ping_and_discovery_tables_have_the_host_first(shared: Instance) -> None:
    """A header, a rule, a row each; the error column only when there is one."""
    good = shared.cli("ping", "web-01").stdout.splitlines()
    assert good[0].split() == ["HOST", "STATUS", "RTT", "VERSION", "EXPIRY"]
    assert set(good[1]) == {"-", " "}
    assert good[2].split()[:2] == ["web-01", "ok"]
    mixed = shared.cli("ping", "web-01", "liar").stdout.splitlines()
    assert mixed[0].split()[-1] == "ERROR"
    rows = shared.cli("discovery", "web-01").stdout.splitlines()
    assert rows[2].split() == ["web-01", "ok", "0.1.0", "env=prod", "role=web", "hello"]


def test_empty_lists_are_documents_too(tmp_path: Path) -> None:
    """Nothing there is an answer, not an error."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "state").mkdir()
    path = tmp_path / "c.conf"
    path.write_text(f"etc_dir = {tmp_path}/etc\nstate_dir = {tmp_path}/state\nlog_target = stderr\n")
    for words, document in (
        ("list-locks", {"ok": True, "locks": []}),
        ("list-agents", {"ok": True, "agents": []}),
    ):
        ended = run("ctrl-exec", "--config", path, words, "--json")
        assert (ended.returncode, json.loads(ended.stdout)) == (0, document), ended.stderr


def test_a_denying_hook_is_exit_3_whatever_was_asked(shared: Instance, tmp_path: Path) -> None:
    """Code and reason; the token comes from the environment, a file or the option, never needs to be a flag."""
    hook = tmp_path / "hook"
    hook.write_text(
        '#!/bin/sh\n[ "$ENVEXEC_TOKEN" = secret ] && exit 0\n[ -z "$ENVEXEC_TOKEN" ] && exit 1\nexit 2\n'
    )
    hook.chmod(0o755)
    conf = tmp_path / "hook.conf"
    conf.write_text(shared.conf.read_text() + f"auth_hook = {hook}\n")
    token = tmp_path / "token"
    token.write_text("secret\nsecond line\n")

    def ask(*words: object, **environment: str) -> tuple[int, dict[str, object]]:
        ended = run("ctrl-exec", "--config", conf, "--json", "ping", "web-01", *words, env=environment)
        return ended.returncode, json.loads(ended.stdout)

    assert ask() == (3, {"ok": False, "error": "denied", "detail": "denied", "code": 1})
    code, document = ask(ENVEXEC_TOKEN="wrong")
    assert (code, document["error"], document["code"]) == (3, "bad credentials", 2)
    assert ask(ENVEXEC_TOKEN="secret")[0] == 0
    assert ask("--token-file", token)[0] == 0
    assert ask("--token", "secret", ENVEXEC_TOKEN="wrong")[0] == 0
    assert ask("--token-file", token, ENVEXEC_TOKEN="wrong")[0] == 0


def test_quiet_and_verbose(shared: Instance) -> None:
    """-v shows the log lines; --quiet leaves results only."""
    ended = shared.cli("run", "web-01", "deploy", "--async", "--quiet")
    assert "accepted" not in ended.stderr
    assert "ACTION=ping" in shared.cli("ping", "web-01", "-v").stderr


def test_a_closed_pipe_and_a_full_disk_end_quietly(shared: Instance) -> None:
    """`ctrl-exec … | head -0` dies by SIGPIPE as others do; /dev/full is said."""
    import subprocess
    import sys

    from tests.support.processes import command, environment

    argv = command("ctrl-exec", "--config", shared.conf, "help")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            argv, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (1, "ctrl-exec: standard output: No space left on device\n")
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == -13, sys.platform


def test_an_old_locale_changes_neither_arguments_nor_output(shared: Instance) -> None:
    """What the script gets and what --json prints is UTF-8, whatever LANG says."""
    posix = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "LANG": ""}
    ended = shared.cli("run", "web-02", "x", "--", "ä€", env=posix)
    assert ended.returncode == 0, ended.stderr
    assert shared.fleet.requests("web-02")[-1]["body"]["args"] == ["ä€"]
    assert "unknown command 'ä€'" in shared.cli("ä€", env=posix).stderr
