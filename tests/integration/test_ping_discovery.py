"""Ping and discovery as operations: who may, whom they mean, what is noted and logged."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.errors import DeniedError, InvalidInputError, UnknownAgentError
from ctrl_exec.common.log import Log
from ctrl_exec.config import load_config
from ctrl_exec.dispatcher import Dispatcher, open_dispatcher
from ctrl_exec.operations.discovery import discover
from ctrl_exec.operations.ping import PingResult, ping
from ctrl_exec.services.authority import Caller
from ctrl_exec.services.transport import Interrupt
from tests.support.emulated import Fleet

CALLER = Caller(username="tester", via="cli")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three agents that answer, one that does not in time, one that answers as another."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    made.add("host-a", tags={"role": "web"})
    made.add("host-b", version="0.2.0")
    made.add("host-c", tags={"role": "db"})
    made.add("slow", lie="never")
    made.add("other", leaf=made.leaves["host-a"])
    with made:
        yield made


class Bench:
    """A dispatcher of these agents in this process, with its log in memory."""

    def __init__(self, agents: Fleet, home: Path) -> None:
        self.home = home
        for name in ("etc", "state"):
            (home / name).mkdir()
        agents.register(home / "state" / "agents")
        # the record of `other` says a key that it does not show
        path = home / "state" / "agents" / "other.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "b" * 64}))
        self.stream = io.StringIO()
        self.base = (
            f"etc_dir = {home}/etc\nstate_dir = {home}/state\nlog_target = stderr\nread_timeout = 1\n"
            f"discovery_timeout = 1\ncert = {agents.identity.pem}\nkey = {agents.identity.pem}\nca = {agents.ca}\n"
        )

    def open(self, extra: str = "") -> Dispatcher:
        """The dispatcher with these lines more."""
        conf = self.home / "etc" / "ctrl-exec.conf"
        conf.write_text(self.base + extra)
        return open_dispatcher(load_config(str(conf)), Log("test", stream=self.stream), environment={})

    def hook(self, code: int) -> str:
        """A setting: an auth hook that ends with the code and keeps what it was told."""
        path = self.home / "hook"
        path.write_text(f"#!/bin/sh\ncat >{self.home}/asked\nexit {code}\n")
        path.chmod(0o755)
        return f"auth_hook = {path}\n"

    def asked(self) -> dict[str, object]:
        """What the hook was told."""
        found = json.loads((self.home / "asked").read_text())
        assert isinstance(found, dict)
        return found


@pytest.fixture
def bench(agents: Fleet, tmp_path: Path) -> Bench:
    """One of it."""
    return Bench(agents, tmp_path)


def by_host(found: tuple[PingResult, ...]) -> dict[str, str]:
    """The states."""
    return {each.host: each.state for each in found}


def test_each_host_has_its_result_in_the_order_asked(bench: Bench) -> None:
    """Whoever answers first."""
    heard: list[str] = []
    found = ping(
        bench.open(),
        CALLER,
        ("slow", "host-b", "other", "host-a"),
        on_result=lambda each: heard.append(each.host),
    )
    assert by_host(found) == {"slow": "timeout", "host-b": "ok", "other": "refused", "host-a": "ok"}
    assert list(by_host(found)) == ["slow", "host-b", "other", "host-a"]
    assert sorted(heard) == ["host-a", "host-b", "other", "slow"]
    slow, other = found[0], found[2]
    assert (slow.error, other.error) == ("read timeout after 1s", "certificate of another agent")
    assert slow.as_json()["status"] == "error"
    log = bench.stream.getvalue()
    assert 'ACTION=ping ERROR="certificate of another agent" HOST=other' in log
    assert "ACTION=ping HOST=host-a" in log


def test_contacts_are_noted(bench: Bench) -> None:
    """Version and expiry of those that answered."""
    dispatcher = bench.open()
    ping(dispatcher, CALLER, ("host-b", "slow"))
    contact = dispatcher.registry.contact("host-b")
    assert (contact["version"], contact["expiry"][-3:]) == ("0.2.0", "GMT")
    assert dispatcher.registry.contact("slow") == {}
    noted = os.stat(bench.home / "state" / "state" / "host-b.json").st_mtime_ns
    ping(dispatcher, CALLER, ("host-b",))  # the same again, a moment later: no news
    assert os.stat(bench.home / "state" / "state" / "host-b.json").st_mtime_ns == noted


def test_contacts_that_cannot_be_noted_are_said_once(bench: Bench) -> None:
    """And the ping is no failure."""
    (bench.home / "state" / "state").write_text("not a directory")
    found = ping(bench.open(), CALLER, ("host-a", "host-b"))
    assert by_host(found) == {"host-a": "ok", "host-b": "ok"}
    assert bench.stream.getvalue().count("contacts cannot be noted") == 1


def test_the_hook_is_asked_with_the_resolved_names(bench: Bench) -> None:
    """Once, with action `ping`, for both."""
    dispatcher = bench.open(bench.hook(0))
    ping(dispatcher, CALLER, ("@role=web", "host-b"))
    assert (bench.asked()["action"], bench.asked()["hosts"]) == ("ping", ["host-a", "host-b"])
    discover(dispatcher, CALLER, ("host-c",))
    assert (bench.asked()["action"], bench.asked()["hosts"]) == ("ping", ["host-c"])


@pytest.mark.parametrize(
    "operation",
    [
        lambda dispatcher: ping(dispatcher, CALLER, ("host-a",)),
        lambda dispatcher: discover(dispatcher, CALLER),
    ],
)
def test_a_denial_contacts_nobody(
    bench: Bench, agents: Fleet, operation: Callable[[Dispatcher], object]
) -> None:
    """The hook says no."""
    before = len(agents.requests())
    with pytest.raises(DeniedError) as caught:
        operation(bench.open(bench.hook(3)))
    assert caught.value.code == 3
    assert len(agents.requests()) == before


def test_unknown_hosts_are_named_after_the_hook(bench: Bench) -> None:
    """All of them, and nobody is contacted."""
    with pytest.raises(UnknownAgentError) as caught:
        ping(bench.open(), CALLER, ("host-a", "no-1", "no-2"))
    assert caught.value.names == ("no-1", "no-2")
    with pytest.raises(UnknownAgentError):
        discover(bench.open(), CALLER, ("no-1",))
    with pytest.raises(InvalidInputError):
        discover(bench.open(), CALLER, ())


def test_a_revoked_key_is_refused_without_contact(bench: Bench, agents: Fleet) -> None:
    """At once; the reason is in the result."""
    dispatcher = bench.open()
    dispatcher.registry.revoke(dispatcher.registry.get("host-c"), "stolen")
    before = len(agents.requests("host-c"))
    (found,) = ping(dispatcher, CALLER, ("host-c",))
    assert (found.state, found.error) == ("refused", "certificate revoked")
    assert len(agents.requests("host-c")) == before


def test_another_port_can_be_asked_for(bench: Bench, agents: Fleet) -> None:
    """The caller's port replaces the recorded one."""
    (found,) = ping(bench.open(), CALLER, ("host-a",), agent_port=1)
    assert (found.state, found.error) == ("unreachable", "connection refused")
    (found,) = ping(bench.open(), CALLER, (f"host-a:{agents.port}",), agent_port=1)
    assert found.is_ok


def test_an_interrupt_leaves_the_rest_cancelled(bench: Bench) -> None:
    """Everyone still has a result."""
    reading, writing = os.pipe()
    seen: list[str] = []

    def note(result: PingResult) -> None:
        seen.append(result.host)
        os.write(writing, b"x")

    found = ping(
        bench.open(),
        CALLER,
        ("host-a", "slow"),
        interrupt=Interrupt((reading,), lambda: bool(seen)),
        on_result=note,
    )
    assert by_host(found) == {"host-a": "ok", "slow": "cancelled"}
    os.close(reading)
    os.close(writing)


def test_discovery_of_all(bench: Bench) -> None:
    """Those that did not answer in time are listed with their error; tags that differ are logged."""
    dispatcher = bench.open()
    dispatcher.registry.amend("host-c", tags=(("role", "cache"), ("site", "x")))
    found = discover(dispatcher, CALLER)
    assert sorted(found) == ["host-a", "host-b", "host-c", "other", "slow"]
    assert {name: each["status"] for name, each in found.items() if each["status"] != "ok"} == {
        "other": "error", "slow": "error",
    }  # fmt: skip
    assert found["host-c"]["tags"] == {"role": "db"}  # live, not the registry's
    log = bench.stream.getvalue()
    assert 'TAGS_DIFFER="role:cache->db site:x->-"' in log
    assert log.count("TAGS_DIFFER") == 1
    assert dispatcher.registry.contact("host-c")["tags"] == {"role": "db"}


def test_discovery_of_nobody(agents: Fleet, tmp_path: Path) -> None:
    """An empty registry is no error, but the hook is asked."""
    bench = Bench(agents, tmp_path)
    for path in (tmp_path / "state" / "agents").iterdir():
        path.unlink()
    assert discover(bench.open(bench.hook(0)), CALLER) == {}
    assert bench.asked()["hosts"] == []
    with pytest.raises(DeniedError):
        discover(bench.open(bench.hook(1)), CALLER)
