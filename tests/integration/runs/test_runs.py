"""A run from request to report: results, locks, records, carriers that go on."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ctrl_exec.common.errors import (
    BusyError,
    CtrlExecError,
    DeniedError,
    InvalidInputError,
    LockedError,
    UnknownAgentError,
    UnknownRunError,
)
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.operations.run import RunRequest, run
from ctrl_exec.operations.status import recover, status, unfinished
from ctrl_exec.services.authority import Caller
from ctrl_exec.services.fanout import FanOut, FanOutSettings
from ctrl_exec.services.transport import Answer, Call, Interrupt
from tests.integration.runs.dispatching import CALLER, Bench
from tests.support.descriptors import kill_holders_of
from tests.support.emulated import Fleet
from tests.support.polling import eventually


def hook(bench: Bench, body: str) -> None:
    path = bench.home / "hook"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    bench.settings["auth_hook"] = path


def test_a_run_on_all(bench: Bench) -> None:
    """One result for each host in the order asked, a complete record, no lock left."""
    report = bench.run("host-0002", "bad", "host-0001", args=("--x", "y z"))
    assert [(each.host, each.state, each.exit) for each in report.results] == [
        ("host-0002", "ok", 0),
        ("bad", "failed", 3),
        ("host-0001", "ok", 0),
    ]
    assert report.results[0].stdout == "ok\n"
    assert report.results[1].stderr == "wrong\n"
    assert {each.reqid for each in report.results} == {report.reqid}
    assert report.complete
    assert report.state == "completed"
    assert not report.has_succeeded
    assert bench.held() == ()
    sent = [each for each in bench.fleet.requests("host-0001") if each["body"].get("reqid") == report.reqid]
    assert sent[0]["body"] == {
        "script": "job", "args": ["--x", "y z"], "reqid": report.reqid, "username": "tester", "token": "",
        "stream": True,
    }  # fmt: skip
    assert bench.status(report.reqid) == report


def test_the_answer_and_the_record_in_the_words_of_the_contract(bench: Bench) -> None:
    """Keys of run, async and status answers; the submitter is in the record and never shown."""
    report = bench.run("@role=web", "!host-000[3-5]")
    shown = report.run_json()
    assert shown["ok"] is True
    assert shown["hosts"] == ["host-0001", "host-0002"]
    first = shown["results"][0]
    assert list(first) == ["host", "script", "exit", "stdout", "stderr", "rtt", "reqid", "state"]
    assert first["rtt"].endswith("ms")
    found = report.status_json()
    assert found["mode"] == "sync"
    assert found["pending"] == []
    assert isinstance(found["completed"], int)
    assert "submitter" not in json.dumps(found)
    stored = json.loads((bench.runs / f"{report.reqid}.json").read_text())
    assert stored["submitter"] == {"username": "tester", "source_ip": "127.0.0.1"}
    assert "hosts" not in bench.run("host-0001").run_json()


def test_the_log_of_a_run(bench: Bench) -> None:
    """What was locked, dispatched, heard and released, all with the request id, each once."""
    report = bench.run("host-0001", "bad")
    lines = [line for line in bench.lines.getvalue().splitlines() if f"REQID={report.reqid}" in line]
    actions = [line.split("ACTION=")[1].split(" ")[0] for line in lines]
    assert actions[:2] == ["lock-acquire", "dispatch"]
    assert sorted(actions[2:]) == ["lock-release", "run", "run"]
    assert actions[-1] == "lock-release"
    with bench.dispatcher().locks.hold(["bad"], "job"), pytest.raises(LockedError):
        bench.run("bad")
    assert "WARNING ACTION=lock-conflict HOSTS=bad" in bench.lines.getvalue()


def test_the_token_of_the_body_goes_on_and_is_not_kept(bench: Bench) -> None:
    """Agents get it; record, log and report do not have it."""
    caller = Caller("alice", "header-token", forwarded_token="body-token", via="cli")
    report = run(bench.dispatcher(), caller, RunRequest(("host-0001",), "job"))
    sent = [each for each in bench.fleet.requests("host-0001") if each["body"].get("reqid") == report.reqid]
    assert sent[0]["body"]["token"] == "body-token"
    kept = bench.lines.getvalue() + "".join(path.read_text() for path in bench.runs.glob("*.*"))
    assert "body-token" not in kept
    assert "header-token" not in kept


def test_order_of_refusals(bench: Bench) -> None:
    """Syntax before the hook, the hook before unknown agents, those before locks; nothing is left."""
    hook(bench, 'case "$ENVEXEC_USERNAME" in eve) exit 3;; esac')
    eve = Caller("eve", via="cli")
    dispatcher = bench.dispatcher()
    with pytest.raises(InvalidInputError):
        run(dispatcher, eve, RunRequest(("nope", "a b"), "job"))
    with pytest.raises(DeniedError):
        run(dispatcher, eve, RunRequest(("nope",), "job"))
    with bench.dispatcher().locks.hold(["host-0001"], "job"):
        with pytest.raises(UnknownAgentError) as caught:
            run(dispatcher, CALLER, RunRequest(("host-0001", "nope", "@role=none"), "job"))
        assert caught.value.names == ("nope", "@role=none")
        with pytest.raises(LockedError):
            run(dispatcher, CALLER, RunRequest(("host-0001",), "job"))
    assert bench.reqids() == []
    assert bench.held() == ()


def test_the_hook_is_told_the_resolved_hosts(bench: Bench) -> None:
    """Patterns are expanded before the hook sees them."""
    hook(bench, f'echo "$ENVEXEC_ACTION $ENVEXEC_HOSTS $ENVEXEC_REQID" >> {bench.home}/told')
    report = bench.run("@role=web", "!host-000[3-5]")
    assert (bench.home / "told").read_text() == f"run host-0001,host-0002 {report.reqid}\n"


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"script": "../x"}, "script"),
        ({"script": ""}, "script"),
        ({"args": ("a\0b",)}, "args"),
        ({"args": ("x",) * 1025}, "args"),
        ({"args": ("x" * 131_072,)}, "args"),
        ({"args": ("x" * 131_071,) * 5}, "args"),
        ({"encoding": "utf-16"}, "encoding"),
        ({"timeout_s": 0}, "timeout"),
        ({"lock_wait_s": 3601}, "lock_wait"),
        ({"lock_wait_s": -1}, "lock_wait"),
        ({"lock_wait_s": float("nan")}, "lock_wait"),
        ({"read_timeout_s": 0}, "read_timeout"),
        ({"agent_port": 65536}, "port"),
    ],
)
def test_bad_values_are_named_and_start_nothing(bench: Bench, facts, field: str) -> None:
    """Each field by its name, before anything is locked or recorded."""
    with pytest.raises(InvalidInputError) as caught:
        bench.run("host-0001", **facts)
    assert caught.value.field == field
    assert not bench.runs.exists()


def test_max_hosts(bench: Bench) -> None:
    """More hosts than allowed are refused after the hook."""
    bench.settings["max_hosts"] = 3
    with pytest.raises(InvalidInputError, match="more than 3 hosts"):
        bench.run("@role=web")
    assert len(bench.run("host-000[1-3]").results) == 3


def test_two_same_runs_at_once(bench: Bench) -> None:
    """Of two processes exactly one runs; the other is refused with the host names."""
    reading, writing = os.pipe()

    def work() -> int:
        os.close(writing)
        os.read(reading, 1)
        try:
            bench.run("slow", "host-0001")
        except LockedError as error:
            return 4 if set(error.conflicts) <= {"slow", "host-0001"} and error.conflicts else 9
        return 0

    children = [fork_child(work) for _ in range(2)]
    os.close(writing)
    assert sorted(wait_status(pid, timeout_s=60) or () for pid in children) == [(0, 0), (4, 0)]
    os.close(reading)
    assert bench.held() == ()


def test_lock_wait(bench: Bench) -> None:
    """A run that may wait for the lock runs when it is free."""
    reading, writing = os.pipe()

    def hold() -> None:
        with bench.dispatcher().locks.hold(["host-0001"], "job"):
            os.read(reading, 1)

    def release() -> None:
        select.select([], [], [], 0.3)
        os.write(writing, b"x")

    first = fork_child(hold)
    eventually(lambda: bench.held() == (("host-0001", "job"),))
    second = fork_child(release)
    report = bench.run("host-0001", lock_wait_s=60)
    assert report.results[0].state == "ok"
    assert [wait_status(pid, timeout_s=60) for pid in (first, second)] == [(0, 0)] * 2
    os.close(reading)
    os.close(writing)


def test_waiting_for_a_lock_ends_when_the_caller_hangs_up(bench: Bench) -> None:
    """Nothing is started for a caller that has gone."""
    reading, writing = os.pipe()
    os.close(writing)
    interrupt = Interrupt((reading,), lambda: bool(select.select([reading], [], [], 0)[0]))
    with bench.dispatcher().locks.hold(["slow"], "job"), pytest.raises(LockedError):
        run(bench.dispatcher(), CALLER, RunRequest(("slow",), "job", lock_wait_s=3600), interrupt=interrupt)
    os.close(reading)
    assert bench.reqids() == []


def test_after_a_read_timeout_a_detached_carrier_goes_on(bench: Bench) -> None:
    """The silent host is said to run, its lock stays held by the carrier, the record is completed."""
    report = bench.run("slower", "host-0001", read_timeout_s=1.5)
    assert report.counts == {"running": 1, "ok": 1}
    slow = report.results[0]
    assert (slow.exit, slow.error) == (-1, "read timeout after 1.5s")
    assert report.pending == ("slower",)
    assert not report.complete
    assert report.completed is None
    assert "completed" not in report.status_json()
    assert bench.held() == (("slower", "job"),)
    with pytest.raises(LockedError) as caught:
        bench.run("slower")
    assert caught.value.conflicts == ("slower",)
    bench.run("host-0001")
    assert recover(bench.dispatcher()).carried == 1
    found = bench.wait_complete(report.reqid)
    assert found.state == "completed"
    assert [(each.state, each.stdout) for each in found.results] == [("ok", "slow\n"), ("ok", "ok\n")]
    eventually(lambda: bench.held() == ())


def test_async(bench: Bench) -> None:
    """The report comes at once with a durable, carried record; a detached carrier completes it."""
    report = bench.run("slow", "host-0001", is_async=True)
    assert report.mode == "async"
    assert report.counts == {"pending": 2}
    assert report.accepted_json()["results"][0] == {
        "host": "slow", "script": "job", "status": "accepted", "reqid": report.reqid,
    }  # fmt: skip
    assert bench.dispatcher().results.is_carried(report.reqid)
    assert ("slow", "job") in bench.held()
    found = bench.wait_complete(report.reqid)
    assert found.counts == {"ok": 2}
    assert found.mode == "async"
    eventually(lambda: bench.held() == ())


def test_a_hung_up_caller_leaves_a_run_that_goes_on(bench: Bench) -> None:
    """The interrupt ends the wait at once; what was sent is not sent again, all is completed."""
    reading, writing = os.pipe()
    interrupt = Interrupt((reading,), lambda: bool(select.select([reading], [], [], 0)[0]))

    def on_result(_: object) -> None:
        os.write(writing, b"x")

    request = RunRequest(("host-0001", "slow"), "job")
    report = run(bench.dispatcher(), CALLER, request, interrupt=interrupt, on_result=on_result)
    assert report.results[0].state == "ok"
    assert report.pending == ("slow",)
    found = bench.wait_complete(report.reqid)
    assert found.counts == {"ok": 2}
    paths = [each["path"] for each in bench.fleet.requests("slow") if report.reqid in json.dumps(each)]
    assert paths.count("/run") == 1
    os.close(reading)
    os.close(writing)


def test_what_had_not_left_when_the_caller_hung_up_is_sent_by_the_carrier(bench: Bench) -> None:
    """Hosts that never got the request get it once, older agents too, and at once."""
    interrupt = Interrupt((), lambda: True)
    request = RunRequest(("host-0001", "bad", "older"), "job")
    report = run(bench.dispatcher(), CALLER, request, interrupt=interrupt)
    assert report.counts == {"pending": 3}
    found = bench.wait_complete(report.reqid)
    assert [each.state for each in found.results] == ["ok", "failed", "ok"]
    assert sent_to(bench, report.reqid) == ["bad", "host-0001", "older"]


def sent_to(bench: Bench, reqid: str) -> list[str]:
    """The hosts that were sent the run, each as often as it was."""
    asked = [each for each in bench.fleet.requests() if each["body"].get("reqid") == reqid]
    return sorted(each["host"] for each in asked if each["path"] == "/run")


class Forgetful:
    """A transport that loses the first calls, as at an interrupt, and cannot tell which had left."""

    def __init__(self, inner: FanOut) -> None:
        self._inner = inner
        self.has_lost = False

    def send(self, calls: Sequence[Call], interrupt: Interrupt | None = None) -> Iterator[Answer]:
        if not self.has_lost:
            self.has_lost = True
            return
        yield from self._inner.send(calls, interrupt)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


@pytest.mark.long
def test_what_may_have_left_is_sent_again_only_where_the_agent_is_sure(bench: Bench) -> None:
    """An agent that records every run says that it never had this one; an older one can't, and ends as lost."""
    identity = str(bench.fleet.identity.pem)
    transport = Forgetful(FanOut(FanOutSettings(identity=identity, ca=bench.fleet.ca)))
    interrupt = Interrupt((), lambda: transport.has_lost)
    request = RunRequest(("host-0001", "bad", "older"), "job")
    report = run(bench.dispatcher(transport=transport), CALLER, request, interrupt=interrupt)
    found = bench.wait_complete(report.reqid)
    assert [each.state for each in found.results] == ["ok", "failed", "lost"]
    assert sent_to(bench, report.reqid) == ["bad", "host-0001"]


def test_an_interrupt_in_the_midst_of_a_large_fan_out(bench: Bench) -> None:
    """Over workers, with one handshake at a time: what had left is asked for, the rest is sent, all once."""
    registry = bench.dispatcher().registry
    record = registry.get("host-0001")
    names = [f"copy-{number:03d}" for number in range(200)]
    for name in names:
        registry.save(type(record)(**{**vars(record), "hostname": name}))
    bench.settings["max_parallel"] = 1
    heard: list[object] = []
    reading, writing = os.pipe()

    def on_result(result: object) -> None:
        heard.append(result)
        if len(heard) == 20:
            os.write(writing, b"x")

    interrupt = Interrupt((reading,), lambda: len(heard) >= 20)
    request = RunRequest(("copy-[000-199]",), "job")
    report = run(bench.dispatcher(), CALLER, request, interrupt=interrupt, on_result=on_result)
    assert 0 < len(report.pending) <= 180
    found = bench.wait_complete(report.reqid)
    assert found.counts == {"ok": 200}
    # they are one agent, which answers for all of them when a host is asked about first
    assert 20 <= len(sent_to(bench, report.reqid)) <= 200
    os.close(reading)
    os.close(writing)


def test_a_detached_carrier_holds_nothing_of_its_maker(bench: Bench, tmp_path: Path) -> None:
    """Pipes and sockets of the caller end with the caller, though the run goes on."""
    reading, writing = os.pipe()

    def work() -> None:
        os.close(reading)
        bench.run("endless", is_async=True)

    pid = fork_child(work)
    os.close(writing)
    assert wait_status(pid, timeout_s=60) == (0, 0)
    assert os.read(reading, 1) == b"", "somebody still has the other end"
    os.close(reading)
    assert bench.held() == (("endless", "job"),)
    kill_carrier(bench)


def kill_carrier(bench: Bench) -> None:
    """kill -9 of whoever holds a lock file of the bench."""
    kill_holders_of(lambda target: target.startswith(str(bench.home)) and "/locks/" in target)


def test_kill_of_the_detached_carrier(bench: Bench) -> None:
    """No stuck lock; the record is taken over by whoever asks, and true."""
    report = bench.run("slower", "endless", "host-0001", read_timeout_s=1.5)
    kill_carrier(bench)
    eventually(lambda: bench.held() == ())
    found = bench.status(report.reqid)
    assert found.state == "interrupted"
    assert not found.complete
    assert sum(found.counts.values()) == 3
    assert found.results[2].state == "ok"
    done = eventually(lambda: (found := bench.status(report.reqid)).results[0].state == "ok" and found)
    assert done.pending == ("endless",)
    late = bench.status(report.reqid, ahead_s=90_000)
    assert late.complete
    assert late.state == "interrupted"
    assert [each.state for each in late.results] == ["ok", "lost", "ok"]


def test_a_broken_connection_is_asked_after(bench: Bench) -> None:
    """An answer that was cut off is not taken for the end of the script."""
    report = bench.run("cut", "host-0001", read_timeout_s=2)
    assert [each.state for each in report.results] == ["running", "ok"]
    assert "connection broke" in report.results[0].error
    assert report.pending == ("cut",)
    kill_carrier(bench)


def test_unreachable_and_unregistered(bench: Bench) -> None:
    """A host that is not there is a result; one that left the registry during its run is lost."""
    record = bench.dispatcher().registry.get("host-0001")
    bench.dispatcher().registry.save(type(record)(**{**vars(record), "hostname": "gone", "port": 1}))
    report = bench.run("gone", "host-0002")
    assert [each.state for each in report.results] == ["unreachable", "ok"]
    assert report.complete
    waiting = bench.run("endless", read_timeout_s=0.3)
    kill_carrier(bench)
    bench.dispatcher().registry.remove("endless")
    found = bench.wait_complete(waiting.reqid)
    assert (found.results[0].state, found.results[0].error) == ("lost", "no longer registered")


def test_ports(bench: Bench) -> None:
    """A port of the request is used for the run and for asking after it."""
    right = bench.fleet.port
    registry = bench.dispatcher().registry
    for name in ("slower", "host-0001"):
        registry.amend(name, port=1)
    report = bench.run(f"slower:{right}", "host-0001", agent_port=right, read_timeout_s=1.5)
    assert report.counts == {"running": 1, "ok": 1}
    kill_carrier(bench)
    found = bench.wait_complete(report.reqid)
    assert found.counts == {"ok": 2}


def test_an_older_agent(bench: Bench) -> None:
    """It runs in the plain way; where it never answers and keeps no records it ends as lost."""
    report = bench.run("older")
    assert report.has_succeeded


def test_the_output_of_a_run_is_bounded(bench: Bench) -> None:
    """Beyond max_run_output each further output keeps its first and last 32 KiB, and says so."""
    bench.settings["max_run_output"] = 400_000
    first = bench.run("large")
    assert first.results[0].truncated == (0, 0)
    bench.settings["max_run_output"] = 100_000
    report = bench.run("large")
    assert len(report.results[0].stdout) == 65_536
    assert report.results[0].truncated == (300_003 - 65_536, 0)
    assert report.results[0].stdout.startswith("ok\n")


def test_base64(bench: Bench) -> None:
    """Exact bytes where the agent has the feature."""
    report = bench.run("host-0001", "older", encoding="base64")
    assert report.results[0].stdout == "b2sK"
    assert (report.results[1].state, report.results[1].error) == ("failed", "agent too old for base64")


def test_status_of_nothing_and_of_others(bench: Bench) -> None:
    """Unknown, and what one may not see, are the same; bad credentials are a denial."""
    report = bench.run("host-0001")
    hook(bench, f'echo "$ENVEXEC_ACTION $ENVEXEC_SUBMITTER" >> {bench.home}/told\nexit "$ENVEXEC_TOKEN"')
    for code, expected in (
        ("0", None),
        ("1", UnknownRunError),
        ("3", UnknownRunError),
        ("2", DeniedError),
        ("9", DeniedError),
    ):
        caller = Caller("bob", code)
        if expected is None:
            assert status(bench.dispatcher(), caller, report.reqid).reqid == report.reqid
        else:
            with pytest.raises(expected):
                status(bench.dispatcher(), caller, report.reqid)
    with pytest.raises(UnknownRunError):
        status(bench.dispatcher(), Caller("bob", "0"), "0123456789abcdef")
    with pytest.raises(InvalidInputError):
        status(bench.dispatcher(), Caller("bob", "0"), "../../etc/passwd")
    assert (bench.home / "told").read_text().splitlines()[0] == "status tester"


def test_unfinished_are_listed(bench: Bench) -> None:
    """Carried or not, oldest first, without those that are complete."""
    bench.run("host-0001")
    first = bench.run("endless", read_timeout_s=0.3)
    assert [each.reqid for each in unfinished(bench.dispatcher())] == [first.reqid]
    kill_carrier(bench)
    eventually(lambda: not bench.dispatcher().results.is_carried(first.reqid))
    assert recover(bench.dispatcher()).unfinished == 1
    assert [each.state for each in unfinished(bench.dispatcher())] == ["interrupted"]
    assert recover(bench.dispatcher(ahead_s=90_000)).completed == 1
    assert unfinished(bench.dispatcher()) == ()


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, lambda *_: os.waitpid(-1, os.WNOHANG)])
def test_sigchld_of_the_caller(bench: Bench, disposition) -> None:
    """With SIGCHLD ignored or stolen: a denying hook denies, fan-out and detaching work."""
    hook(bench, 'test "$ENVEXEC_USERNAME" = tester')

    def work() -> int:
        signal.signal(signal.SIGCHLD, disposition)
        try:
            run(bench.dispatcher(), Caller("eve", via="cli"), RunRequest(("host-0001",), "job"))
        except DeniedError:
            return 42
        return 1

    assert wait_status(fork_child(work), timeout_s=60) == (42, 0)
    assert bench.reqids() == []


@pytest.mark.root
def test_no_process_for_a_detached_carrier(agents: Fleet) -> None:
    """Where no process can be made an async run is refused, recorded as cancelled, and nothing was sent."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become a user with a limit of processes")
    home = Path(tempfile.mkdtemp(prefix="ctrl-exec-test-"))
    try:
        bench = Bench(home, agents)
        for each in (home, *home.rglob("*")):
            os.chown(each, 65534, 65534)

        def work() -> int:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
            try:
                bench.run("host-0001", is_async=True)
            except BusyError:
                return 42
            return 1

        assert wait_status(fork_child(work), timeout_s=60) == (42, 0)
        [reqid] = bench.reqids()
        found = bench.status(reqid)
        assert (found.state, found.complete, found.counts) == ("cancelled", True, {"cancelled": 1})
        assert bench.held() == ()
        assert not [each for each in agents.requests() if reqid in str(each)]
    finally:
        shutil.rmtree(home)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_identity_that_can_not_be_used_starts_nothing(bench: Bench, is_async: bool) -> None:
    """The error names it, the record says `cancelled`, the locks are free, nothing runs later."""
    bench.settings["cert"] = bench.settings["key"] = bench.home / "none.pem"
    bench.reload()
    if is_async:
        assert bench.run("host-0001", is_async=True).pending == ("host-0001",)
    else:
        with pytest.raises(CtrlExecError, match=r"none\.pem"):
            bench.run("host-0001")
    [reqid] = bench.reqids()
    found = bench.wait_complete(reqid)
    assert (found.state, found.counts) == ("cancelled", {"cancelled": 1})
    assert "not started" in found.results[0].error
    eventually(lambda: bench.held() == ())


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, lambda *_: os.waitpid(-1, os.WNOHANG)])
def test_sigchld_of_the_caller_and_workers(bench: Bench, disposition) -> None:
    """Fan-out over workers, and a detached carrier, do their work under a foreign SIGCHLD too."""
    registry = bench.dispatcher().registry
    record = registry.get("host-0001")
    for number in range(20):
        registry.save(type(record)(**{**vars(record), "hostname": f"copy-{number:02d}"}))

    def work() -> int:
        signal.signal(signal.SIGCHLD, disposition)
        report = bench.run("copy-[00-19]", "slower", read_timeout_s=2)
        return 42 if report.counts == {"ok": 20, "running": 1} else 1

    assert wait_status(fork_child(work), timeout_s=60) == (42, 0)
    [reqid] = bench.reqids()
    assert bench.wait_complete(reqid).counts == {"ok": 21}


def test_many_hosts_over_workers(bench: Bench) -> None:
    """Above 16 hosts workers carry the bytes; they hold no lock and the order stays."""
    registry = bench.dispatcher().registry
    record = registry.get("host-0001")
    for number in range(40):
        registry.save(type(record)(**{**vars(record), "hostname": f"copy-{number:02d}"}))
    report = bench.run("copy-[00-39]")
    assert [each.host for each in report.results] == [f"copy-{number:02d}" for number in range(40)]
    assert report.counts == {"ok": 40}
    assert bench.held() == ()
