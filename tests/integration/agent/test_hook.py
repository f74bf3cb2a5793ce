"""The agent's own auth hook: asked before runs, discovery and rotation; every oddity of it denies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.agents import AgentHost
from tests.support.pki import TestCA

REQID = "00112233aabbccdd"


def hooked(host: AgentHost, text: str, settings: str = "") -> AgentHost:
    """The agent with that hook."""
    hook = host.directory / "hook"
    hook.write_text(f"#!/bin/sh\n{text}\n")
    hook.chmod(0o755)
    host.script("hello", "echo hi")
    host.configure(f"auth_hook = {hook}\n{settings}")
    return host.start()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exit 1", "denied"),
        ("exit 2", "bad credentials"),
        ("exit 3", "insufficient privilege"),
        ("exit 7", "denied"),
        ("kill -9 $$", "denied"),
        ("kill -TERM $$", "denied"),
        ("sleep 60", "denied"),
        ("head -c 1048576 /dev/zero; exit 1", "denied"),
    ],
)
def test_whatever_is_no_exit_0_refuses_the_run(host: AgentHost, text: str, reason: str):
    hooked(host, text, "auth_hook_timeout = 1\n")
    found = host.run("hello", reqid=REQID)
    assert found == {"script": "hello", "exit": -1, "error": f"not authorised: {reason}", "reqid": REQID}
    answer = host.ask("GET", "/capabilities")
    assert (answer.status, answer.json()["status"]) == (403, "forbidden")
    assert host.ask("POST", "/ping", {"reqid": REQID}).status == 200
    assert host.result(REQID).status == 404


@pytest.mark.parametrize("fault", ["missing", "not executable"])
def test_a_hook_that_cannot_be_started_denies_and_is_warned_about(host: AgentHost, fault: str):
    hook = host.directory / "hook"
    if fault == "not executable":
        hook.write_text("exit 0")
        hook.chmod(0o644)
    host.script("hello", "echo hi")
    host.configure(f"auth_hook = {hook}\n")
    with host.start():
        assert host.run("hello")["error"] == "not authorised: denied"
        assert "ACTION=auth" in host.log()
        if fault == "missing":
            assert "can't be executed: every request will be denied" in host.log()


def test_what_the_hook_is_told(host: AgentHost):
    out = host.directory / "asked"
    hooked(host, f"env > {out}.$ENVEXEC_ACTION; cat > {out}.json.$ENVEXEC_ACTION")
    assert host.run("hello", "a b", reqid=REQID, username="alice", token="s3cret")["exit"] == 0
    assert host.ask("GET", "/capabilities").status == 200
    variables = dict(line.split("=", 1) for line in Path(f"{out}.run").read_text().splitlines())
    document = json.loads(Path(f"{out}.json.run").read_text())
    expected = {
        "ACTION": "run", "SCRIPT": "hello", "HOSTS": "host-a", "ARGS": "a b", "ARGS_JSON": '["a b"]',
        "USERNAME": "alice", "TOKEN": "s3cret", "DISPATCHER": "main", "REQID": REQID,
        "DISPATCHER_SERIAL": host.dispatcher.serial,
    }  # fmt: skip
    assert {key: variables[f"ENVEXEC_{key}"] for key in expected} == expected
    assert variables["ENVEXEC_SOURCE_IP"].startswith("127.")
    assert (document["action"], document["args"], document["dispatcher"]) == ("run", ["a b"], "main")
    assert "ENVEXEC_ACTION=discovery" in Path(f"{out}.discovery").read_text()
    assert "s3cret" not in host.log()


def test_a_hook_that_ignores_its_input_and_talks_a_lot_may_allow(host: AgentHost):
    hooked(host, "head -c 1048576 /dev/zero; exit 0")
    assert host.run("hello", username="u" * 100_000)["stdout"] == "hi\n"


def test_a_denied_rotation_changes_nothing(host: AgentHost, ca: TestCA):
    hooked(host, '[ "$ENVEXEC_ACTION" != rotate ] || exit 3')
    fresh = ca.dispatcher("main")
    before = (host.state / "ctrl-exec-dispatchers").read_text()
    body = {"serial": fresh.serial, "action": "add", "cert": fresh.crt.read_text()}
    answer = host.ask("POST", "/rotate-serial", body)
    assert answer.status == 403
    assert answer.json()["error"] == "not authorised: insufficient privilege"
    assert (host.state / "ctrl-exec-dispatchers").read_text() == before
