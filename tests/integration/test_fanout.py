"""The fan-out engine against emulated agents over real TLS, as things should go."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.value import replace
from ctrl_exec.services.fanout import WORKERS_FROM, Answer, Call, FanOut, FanOutSettings, Interrupt
from tests.support.descriptors import open_descriptors
from tests.support.emulated import Fleet
from tests.support.processes import children_of

FEW, MANY = 3, WORKERS_FROM + 24


def workers() -> set[int]:
    """Our children that were forked and have not become another program."""
    own = Path("/proc/self/cmdline").read_bytes()
    found = set()
    for pid in children_of(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes() == own:
                found.add(pid)
    return found


def engine(fleet: Fleet, **options: object) -> FanOut:
    """An engine with the fleet's identity."""
    return FanOut(FanOutSettings(identity=str(fleet.identity.pem), ca=fleet.ca, **options))  # type: ignore[arg-type]


def ask(fleet: Fleet, calls: list[Call], **options: object) -> dict[str, Answer]:
    """All answers by key; each call has exactly one."""
    answers = list(engine(fleet, **options).send(calls))
    found = {answer.key: answer for answer in answers}
    assert len(found) == len(answers) == len(calls)
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Forty agents that do as they should, and some with a way of their own."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    made.add_many(MANY)
    made.add("slow", delay_s=600)
    made.add("soon", delay_s=0.3)
    made.add("large", stdout_bytes=3 << 20)
    made.add("older", older=True)
    made.add("early", lie="early")
    with made:
        yield made


@pytest.mark.parametrize("count", [1, FEW, WORKERS_FROM - 1, WORKERS_FROM, MANY])
def test_every_call_is_answered_once(fleet: Fleet, count: int) -> None:
    """Below the limit in this process, above it by workers, the answers are the same."""
    calls = [fleet.call(f"host-{number:04d}") for number in range(1, count + 1)]
    for key, answer in ask(fleet, calls).items():
        assert answer.failure is None
        assert answer.status == 200
        assert f'"host": "{key}"'.encode() in answer.body
        assert answer.certificate is not None
        assert answer.certificate.fingerprint == fleet.leaves[key].fingerprint
        assert answer.rtt_s > 0


def test_no_calls_have_no_answers(fleet: Fleet) -> None:
    """Nothing is started for nothing, not even the identity is read."""
    assert list(FanOut(FanOutSettings(identity="/nonexistent", ca="/nonexistent")).send([])) == []


def test_workers_are_gone_when_all_is_answered(fleet: Fleet) -> None:
    """No worker, no zombie and no descriptor is left behind."""
    before = open_descriptors()
    ask(fleet, [fleet.call(f"host-{number:04d}") for number in range(1, MANY + 1)])
    assert workers() == set()
    assert open_descriptors() == before


def test_answers_come_as_they_are_ready(fleet: Fleet) -> None:
    """A slow agent delays nobody: all others are there, then the iteration is given up."""
    calls = [fleet.call("slow"), *(fleet.call(f"host-{number:04d}") for number in range(1, MANY + 1))]
    answers = engine(fleet).send(calls)
    quick = [next(answers) for _ in range(MANY)]
    assert all(answer.status == 200 and answer.key != "slow" for answer in quick)
    answers.close()  # type: ignore[attr-defined]
    assert workers() == set()


def test_one_agent_may_be_called_several_times(fleet: Fleet) -> None:
    """Calls are told apart by their keys, not by their host."""
    calls = [fleet.call("host-0001", key=f"call-{number}") for number in range(MANY)]
    assert {answer.status for answer in ask(fleet, calls).values()} == {200}


def test_a_large_answer_is_whole(fleet: Fleet) -> None:
    """Three megabytes come through a worker as they were sent."""
    call = fleet.call("large", "/run", {"script": "x", "reqid": "0" * 16}, limit_bytes=8 << 20)
    others = [fleet.call(f"host-{number:04d}") for number in range(1, MANY)]
    answer = ask(fleet, [call, *others])["large"]
    assert answer.body.count(b"x") >= 3 << 20


def test_a_large_request_is_sent_whole(fleet: Fleet) -> None:
    """More than a socket buffer takes goes out in parts."""
    argument = "y" * 131_000
    body = {"script": "x", "reqid": "0" * 16, "args": [argument] * 40}
    answer = ask(fleet, [fleet.call("host-0001", "/run", body)])["host-0001"]
    assert answer.status == 200
    sent = [each for each in fleet.requests("host-0001") if len(each["body"].get("args", ())) == 40]
    assert sent[-1]["body"]["args"] == [argument] * 40


def test_an_older_peer_ends_its_answer_by_closing(fleet: Fleet) -> None:
    """HTTP/1.0 without close_notify is understood."""
    assert ask(fleet, [fleet.call("older")])["older"].status == 200


def test_names_are_resolved(fleet: Fleet) -> None:
    """A name is resolved in a child process; one that is none fails by itself."""
    local = [fleet.call("host-0001", key=f"name-{number}", host="localhost") for number in range(3)]
    calls = [*local, fleet.call("host-0001", key="none", host="no-such-host.invalid")]
    found = ask(fleet, calls)
    # 127.0.0.1 belongs to no emulated agent, which then closes: the name was resolved and dialled
    assert all("resol" not in found[call.key].failure.reason for call in local)  # type: ignore[union-attr]
    failure = found["none"].failure
    assert failure is not None
    assert (failure.kind, failure.sent) == ("unreachable", False)
    assert "name resolution" in failure.reason
    assert workers() == set()


def test_the_interrupt_ends_it_early(fleet: Fleet) -> None:
    """What has come is given, the rest stays unanswered, workers are gone."""
    for count in (FEW, MANY):
        reading, writing = os.pipe()
        calls = [fleet.call("slow"), *(fleet.call(f"host-{number:04d}") for number in range(1, count + 1))]
        seen = []

        def is_set(fd: int = reading) -> bool:
            return bool(select.select([fd], [], [], 0)[0])

        for answer in engine(fleet).send(calls, Interrupt((reading,), is_set)):
            seen.append(answer.key)
            if len(seen) == count:
                os.write(writing, b"x")
        assert len(seen) == count
        assert "slow" not in seen
        assert workers() == set()
        os.close(reading)
        os.close(writing)


def test_a_descriptor_that_is_readable_for_another_reason_is_no_interrupt(fleet: Fleet) -> None:
    """A client that has sent more bytes has not hung up."""
    reading, writing = os.pipe()
    os.write(writing, b"pipelined")
    asked = []

    def is_set() -> bool:
        asked.append(1)
        return False

    answers = list(engine(fleet).send([fleet.call("soon")], Interrupt((reading,), is_set)))
    assert answers[0].status == 200
    assert len(asked) < 50  # a busy loop would ask thousands of times in 0.3 s
    os.close(reading)
    os.close(writing)


def test_a_new_identity_is_picked_up(fleet: Fleet, tmp_path: Path) -> None:
    """The context is made anew when the file was replaced by a rename."""
    current = tmp_path / "current.pem"
    current.write_bytes(Path(fleet.identity.pem).read_bytes())
    sender = FanOut(FanOutSettings(identity=str(current), ca=fleet.ca))
    assert next(iter(sender.send([fleet.call("host-0001")]))).status == 200
    stranger = Fleet(tmp_path / "other")
    other = tmp_path / "other.pem"
    other.write_bytes(Path(stranger.identity.pem).read_bytes())
    os.replace(other, current)
    failure = next(iter(sender.send([fleet.call("host-0001")]))).failure
    assert failure is not None
    assert failure.kind == "refused"


def test_an_answer_that_comes_before_the_request_is_out_counts(fleet: Fleet) -> None:
    """An agent refuses a large request from its first bytes: its word is heard, we are not stuck."""
    call = fleet.call("early", "/run", {"args": ["y" * 100_000] * 100})
    answer = ask(fleet, [call])["early"]
    if answer.failure is None:
        assert (answer.status, answer.body) == (413, b'{"error": "payload too large"}')
    else:  # a reset can overtake the answer
        assert answer.failure.kind == "lost"


def test_workers_are_waited_for_when_the_caller_ignores_sigchld(fleet: Fleet) -> None:
    """A caller with SIGCHLD ignored, or with a reaper of its own, gets all answers too."""
    handlers = [signal.SIG_IGN, lambda *_: os.waitpid(-1, os.WNOHANG)]
    calls = [fleet.call(f"host-{number:04d}") for number in range(1, MANY + 1)]
    calls.append(fleet.call("host-0001", key="name", host="no-such-host.invalid"))
    for handler in handlers:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGCHLD, handler)
                answers = list(engine(fleet).send(calls))
                good = sum(answer.status == 200 for answer in answers)
                code = 0 if (good, len(answers)) == (MANY, MANY + 1) else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0


def test_a_worker_that_fails_loses_its_own_share(fleet: Fleet) -> None:
    """A mistake of ours in one worker is not silence: its calls are `lost`."""
    calls = [fleet.call(f"host-{number:04d}") for number in range(1, MANY + 1)]
    calls[0] = replace(calls[0], request=None)
    found = ask(fleet, calls, workers=2)
    lost = {key for key, answer in found.items() if answer.failure}
    assert "host-0001" in lost
    assert lost <= {call.key for call in calls[0::2]}
    assert all(answer.failure is None or answer.failure.kind == "lost" for answer in found.values())


def test_few_descriptors_bound_the_connections(fleet: Fleet) -> None:
    """With room for a handful of sockets, more hosts than that are all answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
            calls = [fleet.call(f"host-{number:04d}") for number in range(1, MANY + 1)]
            code = 0 if all(answer.status == 200 for answer in engine(fleet).send(calls)) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_one_handshake_at_a_time_is_enough(fleet: Fleet) -> None:
    """The bound on handshakes in flight slows down and loses nothing."""
    calls = [fleet.call(f"host-{number:04d}") for number in range(1, FEW + 1)]
    assert all(answer.status == 200 for answer in ask(fleet, calls, max_parallel=1).values())
