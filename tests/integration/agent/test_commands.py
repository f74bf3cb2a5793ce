"""The agent's commands: what they print, their exit codes, and what they say when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agents import AgentHost
from tests.support.pki import TestCA
from tests.support.polling import eventually
from tests.support.processes import ROOT, run


def test_serve_unpaired_says_how_to_pair_and_exits_78(host: AgentHost):
    (host.etc / "agent.crt").unlink()
    ended = host.command("serve")
    assert ended.returncode == 78
    assert "not paired" in ended.stderr
    assert "request-pairing --dispatcher" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("agent.conf", "port = x\n", "agent.conf:1: port = 'x': expected a whole number"),
        ("agent.conf", None, "no such file"),
        ("scripts.conf", "a = b\n", "scripts.conf:1: 'b' is no absolute path"),
        ("scripts.conf", None, "no such file"),
        ("scripts.conf", "a = /bin/true profile=deploy\n", "profile deploy is not defined"),
        ("agent.crt", "no certificate\n", "agent.crt"),
        ("agent.key", "no key\n", "agent.key"),
        ("ca.crt", "no ca\n", "ca.crt"),
    ],
)
def test_a_wrong_file_is_named_and_exits_78(host: AgentHost, file: str, content: str | None, said: str):
    path = host.etc / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    ended = host.command("serve")
    assert ended.returncode == 78
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    checked = host.command("self-check")
    assert checked.returncode in (1, 78)
    assert "fail" in checked.stdout or said in checked.stderr


def test_a_defined_profile_or_an_executor_is_refused_as_long_as_nobody_serves_it(host: AgentHost):
    host.allow("deploy", "/bin/true", "profile=web")
    host.configure("[profile web]\nrun_as = www-data\n")
    assert "profile web needs executor_socket" in host.command("serve").stderr
    host.configure("executor_socket = /run/x.sock\n")
    ended = host.command("serve")
    assert ended.returncode == 78
    assert "agent.conf:7: executor_socket: this version has no executor" in ended.stderr


def test_a_port_that_is_taken_is_named(host: AgentHost, tmp_path: Path, ca: TestCA):
    with host.start():
        second = AgentHost(tmp_path / "second", ca)
        second.config.write_text(
            second.config.read_text().replace(second.ip, host.ip).replace("port = 0", f"port = {host.port}")
        )
        ended = second.command("serve")
        assert ended.returncode == 1
        assert f"cannot listen on {host.ip} port {host.port}" in ended.stderr


def test_self_check_finds_nothing_wrong_with_a_good_agent(host: AgentHost):
    host.script("hello", "true")
    ended = host.command("self-check")
    assert ended.returncode == 0, ended.stdout
    assert "scripts run as " in ended.stdout
    assert "fail" not in ended.stdout
    found = json.loads(host.command("self-check", "--json").stdout)
    assert found["ok"] is True


def test_self_check_names_what_is_wrong(host: AgentHost, ca: TestCA):
    host.allow("shell", "/bin/sh")
    host.allow("gone", "/no/such")
    (host.state / "ctrl-exec-dispatchers").write_text("xyz main\n")
    expired = ca.issue("host-a", key=host.leaf.key, days=-1, starts_days=-5)
    (host.etc / "agent.crt").write_bytes(expired.crt.read_bytes())
    ended = host.command("self-check")
    assert ended.returncode == 1
    for words in (
        "shell: /bin/sh runs whatever its arguments say", "gone: /no/such does not exist",
        "'xyz' is no serial", "no dispatcher is trusted", "is not valid now",
    ):  # fmt: skip
        assert words in ended.stdout


def test_pairing_state(host: AgentHost):
    assert host.command("paired").returncode == 0
    status = json.loads(host.command("pairing-status", "--json").stdout)
    assert status["paired"] is True
    assert status["dispatchers"] == ["main"]
    assert status["fingerprint"] == host.leaf.fingerprint
    (host.etc / "agent.key").unlink()
    assert host.command("paired").returncode == 1
    ended = host.command("pairing-status")
    assert ended.returncode == 1
    assert "request-pairing" in ended.stdout


def test_self_ping_sees_the_running_agent_however_often(host: AgentHost):
    with host.start():
        for _ in range(6):
            ended = host.command("self-ping", "--port", str(host.port), "--json")
            assert ended.returncode == 0, ended.stderr
            assert json.loads(ended.stdout)["serial"] == host.leaf.serial
        assert "rate-block" not in host.log()
    ended = host.command("self-ping", "--port", str(host.port))
    assert ended.returncode == 1
    assert "no agent answers" in ended.stderr


def test_self_ping_is_not_fooled_by_another_agent(host: AgentHost, tmp_path: Path, ca: TestCA):
    other = AgentHost(tmp_path / "other", ca, name="host-b")
    with other.start():
        host.config.write_text(host.config.read_text().replace(host.ip, other.ip))
        ended = host.command("self-ping", "--port", str(other.port))
        assert ended.returncode == 1
        assert "another key" in ended.stderr


def test_run_local_does_what_a_dispatcher_would_get(host: AgentHost):
    host.script("hello", 'cat; echo "args: $*"; pwd; echo err >&2; exit 3')
    ended = host.command("run-local", "hello", "--", "-a", "b c", env={"LD_DEBUG_OUTPUT": "/x", "USER": "me"})
    assert ended.returncode == 3
    told, args, directory = ended.stdout.splitlines()
    assert json.loads(told)["args"] == ["-a", "b c"]
    assert (args, directory) == ("args: -a b c", "/")
    assert "err\n" in ended.stderr
    found = json.loads(host.command("--json", "run-local", "hello").stdout)
    assert (found["ok"], found["exit"], found["stderr"]) == (False, 3, "err\n")


def test_run_local_refuses_and_limits_as_the_agent_does(host: AgentHost):
    host.script("slow", "sleep 60")
    assert "script not permitted" in host.command("run-local", "other").stderr
    ended = host.command("run-local", "slow", "--timeout", "1")
    assert ended.returncode == 124
    assert "timed out after 1s" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "a command is missing"),
        (("bogus",), "is not known"),
        (("request-pairing",), "--dispatcher"),
        (("serve", "--colour"), "--colour"),
        (("serv",), "'serv' is not known; did you mean serve?"),
        (("nonsense",), "'nonsense' is not known; expected one of serve, request-pairing, "),
        (("executor",), "executor is not part of version "),
        (("request-pairing", "--lookup-by", "hostnam"), "did you mean hostname?"),
        (("run-local",), "SCRIPT"),
        (("request-pairing", "--dispatcher", "x", "--token", "a", "--token-file", "b"), "one of them"),
        (("request-pairing", "--dispatcher", "x", "--token-file", "/no/such"), "no such file"),
    ],
)
def test_a_wrong_command_line_is_exit_2_with_a_hint(host: AgentHost, arguments: tuple[str, ...], said: str):
    ended = host.command(*arguments)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_errors_are_json_too_when_asked_for(host: AgentHost):
    ended = host.command("promote-cert", "--json")
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["ok"] is False


def test_a_missing_configuration_says_how_to_come_by_one(tmp_path: Path):
    ended = run("ctrl-exec-agent", "--config", tmp_path / "none.conf", "self-ping")
    assert ended.returncode == 78
    assert ended.stderr.splitlines() == [
        f"ctrl-exec-agent: {tmp_path}/none.conf: no such file",
        "`make install-system ROLE=agent` makes the system's; --config FILE names another",
    ]


def test_help_and_version_need_no_configuration():
    ended = run("ctrl-exec-agent", "--version")
    assert ended.stdout.startswith("ctrl-exec-agent ")
    shown = run("ctrl-exec-agent", "--help").stdout
    for command in ("serve", "request-pairing", "self-check", "run-local", "promote-cert"):
        assert command in shown


@pytest.mark.parametrize("name", ["ctrl-exec-agent", "cea"])
def test_the_launcher_works_from_a_bare_checkout_and_anywhere(host: AgentHost, tmp_path: Path, name: str):
    ended = subprocess.run(
        [ROOT / "bin" / name, "paired", "--config", host.config],
        cwd=tmp_path, env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, "paired\n")


def test_serve_ends_cleanly_at_sigterm(host: AgentHost):
    host.start()
    assert host.stop() == 0
    eventually(lambda: "ACTION=stop" in host.log())
