"""The dry run that children make of an order: it goes the whole way, and nothing comes of it."""

from __future__ import annotations

import os

import pytest

from ctrl_exec_agent.dry_run import DryRun
from ctrl_exec_agent.generation import Parts, Source, load_parts
from ctrl_exec_agent.server import Application
from tests.support.agents import AgentHost


@pytest.fixture
def parts(host: AgentHost) -> Parts:
    return load_parts(Source(config_path=str(host.config)))


def test_it_gets_as_far_as_the_lock_of_its_script(parts: Parts):
    judged = []

    class Observed(Application):
        def judge(self, request):
            judged.append(super().judge(request))
            return judged[-1]

    dry_run = DryRun(parts, lambda tame: Observed(tame, os.getpid()))
    for _ in range(2):
        head, _, body = dry_run.go().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b'"error":"script already running"' in body
    # read to the end, and then found to be nobody's that we know
    assert [verdict.reason for verdict in judged] == ["the serial is not in the trust map"] * 2


def test_it_leaves_nothing_behind(parts: Parts, host: AgentHost, capfd: pytest.CaptureFixture[str]):
    before = sorted(host.state.rglob("*"))
    DryRun(parts, lambda tame: Application(tame, os.getpid()))()
    assert sorted(host.state.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_what_goes_wrong_in_it_harms_nobody(parts: Parts):
    class Broken(Application):
        def judge(self, request):
            raise RuntimeError("broken")

    dry_run = DryRun(parts, lambda tame: Broken(tame, os.getpid()))
    dry_run()
    with pytest.raises(RuntimeError, match="broken"):
        dry_run.go()


def test_an_agent_that_makes_them_runs_what_it_is_told_and_speaks_of_nothing_else(host: AgentHost):
    host.script("one", "echo 1")
    with host.start():
        assert [host.run("one")["stdout"] for _ in range(3)] == ["1\n"] * 3
        assert "ACTION=deny" not in host.log()
        assert host.log().count("ACTION=run-start") == 3
