"""SIGHUP: what is read anew, what a wrong file does, what becomes of connections and runs."""

from __future__ import annotations

import os
import shutil
import signal

from tests.support.agents import AgentHost, receive, send
from tests.support.polling import eventually

PING = {"reqid": "0123456789abcdef"}


def reload(host: AgentHost, outcome: str = "OUTCOME=ok") -> None:
    """SIGHUP, and wait until the agent has said what came of it."""
    before = host.log().count("ACTION=reload")
    os.kill(host.running.pid, signal.SIGHUP)  # type: ignore[union-attr]
    eventually(lambda: host.log().count("ACTION=reload") > before)
    assert outcome in host.log().split("ACTION=reload")[-1]


def test_scripts_tags_and_limits_change_without_a_restart(host: AgentHost):
    host.script("one", "echo 1")
    with host.start():
        assert host.run("two")["error"] == "script not permitted"
        host.script("two", "head -c 100 /dev/zero | tr '\\0' x")
        host.configure("max_output = 10\n[tags]\nenv = new\n")
        reload(host)
        assert host.run("two")["stdout"] == "x" * 10
        assert host.ask("GET", "/capabilities").json()["tags"] == {"env": "new"}


def test_a_wrong_file_keeps_the_old_generation_and_says_which_line(host: AgentHost):
    host.script("one", "echo 1")
    with host.start():
        good = (host.etc / "scripts.conf").read_text()
        (host.etc / "scripts.conf").write_text(good + "broken line\n")
        reload(host, "scripts.conf:2: ")
        assert host.run("one")["exit"] == 0
        (host.etc / "scripts.conf").write_text(good)
        host.config.write_text(host.config.read_text() + "colour = red\n")
        reload(host, "unknown key")
        assert host.run("one")["exit"] == 0
        host.configure()
        (host.etc / "agent.key").rename(host.etc / "away")
        reload(host, "not paired")
        assert host.run("one")["exit"] == 0


def test_idle_connections_end_and_busy_ones_after_their_answer(host: AgentHost):
    go = host.directory / "go"
    host.script("wait", f"touch {host.directory}/begun; while ! [ -e {go} ]; do sleep 0.02; done; echo done")
    with host.start(), host.connect() as idle, host.connect() as busy:
        send(idle, "POST", "/ping", PING)
        assert receive(idle).headers["connection"] == "keep-alive"
        send(busy, "POST", "/run", {"script": "wait", "args": [], "reqid": "00112233aabbccdd"})
        eventually((host.directory / "begun").exists)
        reload(host)
        assert idle.recv(1) == b""
        go.touch()
        answer = receive(busy)
        assert answer.json()["stdout"] == "done\n"
        assert answer.headers["connection"] == "close"


def test_a_new_certificate_is_used_for_new_connections(host: AgentHost, ca):
    with host.start():
        with host.connect() as connection:
            before = connection.getpeercert(binary_form=True)
        renewed = ca.issue("host-a", key=host.leaf.key)
        shutil.copy(renewed.crt, host.etc / "agent.crt")
        reload(host)
        with host.connect() as connection:
            assert connection.getpeercert(binary_form=True) != before


def test_reloads_under_load_drop_no_request(host: AgentHost):
    host.script("one", "echo 1", "lock=no")
    with host.start():
        for turn in range(60):
            if turn % 3 == 0:
                os.kill(host.running.pid, signal.SIGHUP)  # type: ignore[union-attr]
            assert host.run("one")["stdout"] == "1\n"
