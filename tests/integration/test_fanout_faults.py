"""The fan-out engine against agents that lie, keys that are wrong, and processes that die."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctrl_exec.services.fanout import Answer, Call, FanOut, FanOutSettings
from tests.support.emulated import Fleet
from tests.support.emulator import LIES
from tests.support.pki import CLIENT, TestCA
from tests.support.polling import eventually
from tests.support.processes import children_of, environment

HONEST = 20
# what each lie comes to; the rest are whole HTTP answers whose body is for the client to judge
FAILURES = {
    "reset": ("unreachable", False),
    "no handshake": ("unreachable", False),
    "garbage": ("protocol", False),
    "plain http": ("protocol", False),
    "never": ("timeout", True),
    "reset late": ("lost", True),
    "close": ("lost", True),
    "cut": ("lost", True),
    "too long": ("lost", True),
    "endless": ("too large", True),
    "endless chunks": ("too large", True),
    "huge length": ("too large", True),
    "headers": ("too large", True),
    "one header": ("too large", True),
    "interim": ("too large", True),
    "trailers": ("too large", True),
    "drip": ("timeout", True),
    "no http": ("protocol", True),
    "bad status": ("protocol", True),
    "bad chunk": ("protocol", True),
    "two lengths": ("protocol", True),
}


def engine(fleet: Fleet, **options: object) -> FanOut:
    """An engine with the fleet's identity and little patience."""
    settings = {"identity": str(fleet.identity.pem), "ca": fleet.ca, "connect_timeout_s": 4.0} | options
    return FanOut(FanOutSettings(**settings))  # type: ignore[arg-type]


def ask(sender: FanOut, calls: list[Call]) -> dict[str, Answer]:
    """All answers by key."""
    return {answer.key: answer for answer in sender.send(calls)}


def peak_bytes_of(work: Callable[[], None]) -> int:
    """The peak resident memory of a forked process that does the work, and of its children."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            peaks = [
                resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            ]
            os.write(writing, json.dumps(max(peaks)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        report = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return int(report) * 1024


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A liar of each kind among honest agents."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    for lie in LIES:
        made.add(f"lie-{lie.replace(' ', '-')}", lie=lie)
    made.add_many(HONEST)
    made.add("slow", delay_s=600)
    with made:
        yield made


def all_calls(fleet: Fleet) -> list[Call]:
    """A ping to each liar and each honest agent; only who will say nothing is waited for shortly."""
    return [
        fleet.call(agent.name, read_timeout_s=1.0 if FAILURES.get(agent.lie) == ("timeout", True) else 60.0)
        for agent in fleet.agents
        if agent.name != "slow"
    ]


@pytest.mark.parametrize("where", ["here", "workers"])
def test_a_liar_harms_itself_alone(fleet: Fleet, where: str) -> None:
    """Each lie is one failure with its name; every honest agent is heard."""
    calls = all_calls(fleet)
    batches = [calls] if where == "workers" else [calls[at : at + 10] for at in range(0, len(calls), 10)]
    found: dict[str, Answer] = {}
    for batch in batches:
        found |= ask(engine(fleet), batch)
    assert len(found) == len(calls)
    for agent in fleet.agents:
        if agent.name == "slow":
            continue
        answer = found[agent.name]
        if agent.lie == "early":
            continue
        if agent.lie in FAILURES:
            assert answer.failure is not None, agent.lie
            assert (answer.failure.kind, answer.failure.sent) == FAILURES[agent.lie], (
                agent.lie,
                answer.failure,
            )
        else:
            assert answer.failure is None, (agent.lie, answer.failure)
            assert answer.status == 200


def test_silent_agents_do_not_hold_up_the_others(fleet: Fleet) -> None:
    """More silent agents than handshakes may be in flight stand in front; the honest ones are heard first."""
    silent = [fleet.call("lie-no-handshake", key=f"silent-{number}") for number in range(150)]
    honest = [fleet.call(f"host-{number:04d}") for number in range(1, HONEST + 1)]
    sender = engine(fleet, workers=1, connect_timeout_s=8.0)
    answers = [answer.key for answer in itertools.islice(sender.send(silent + honest), HONEST)]
    assert sorted(answers) == sorted(call.key for call in honest)


def test_lies_take_no_memory(fleet: Fleet) -> None:
    """However much a liar sends, not more than the limit of its answer is kept."""
    honest = [call for call in all_calls(fleet) if call.key.startswith("host-")]
    liars = [call for call in all_calls(fleet) if not call.key.startswith("host-")]
    least = peak_bytes_of(lambda: [None for _ in engine(fleet).send(honest)] and None)
    most = peak_bytes_of(lambda: [None for _ in engine(fleet).send(honest + liars)] and None)
    assert most < least + (24 << 20)


def test_many_large_answers_at_once_stay_within_memory(tmp_path: Path) -> None:
    """Thirty answers of 8 MiB come through one process that never holds more than three quarters of them."""
    fleet = Fleet(tmp_path)
    fleet.add_many(30, stdout_bytes=8 << 20)
    body = {"script": "x", "reqid": "0" * 16}
    with fleet:
        calls = [
            fleet.call(agent.name, "/run", body, limit_bytes=16 << 20, read_timeout_s=120.0)
            for agent in fleet.agents
        ]

        def work() -> None:
            sizes = [
                len(answer.body) for answer in engine(fleet, workers=1, connect_timeout_s=60).send(calls)
            ]
            assert len(sizes) == 30
            assert min(sizes) > 8 << 20

        idle = peak_bytes_of(lambda: None)
        assert peak_bytes_of(work) < idle + (180 << 20)  # of 240; 64 and two whole ones are meant


def test_another_agents_certificate_gets_no_byte_of_the_request(tmp_path: Path) -> None:
    """A certificate of the same CA that belongs to another agent cannot answer for it."""
    fleet = Fleet(tmp_path)
    fleet.add("owner")
    fleet.add("thief", leaf=fleet.authority.issue("owner"))
    fleet.add("twin", leaf=fleet.leaves["owner"])
    with fleet:
        wrong = fleet.call("thief", fingerprint=fleet.leaves["owner"].fingerprint)
        right = fleet.call("twin")
        found = ask(engine(fleet), [wrong, right])
        failure = found["thief"].failure
        assert failure is not None
        assert (failure.kind, failure.reason, failure.sent) == (
            "refused",
            "certificate of another agent",
            False,
        )
        assert found["twin"].status == 200
        assert fleet.requests("thief") == []


def test_revoked_and_foreign_keys_are_refused(tmp_path: Path) -> None:
    """A key that is revoked, or known to be another's, is refused even where none was recorded."""
    fleet = Fleet(tmp_path)
    fleet.add("revoked")
    fleet.add("foreign")
    with fleet:
        keys = {name: frozenset([leaf.fingerprint]) for name, leaf in fleet.leaves.items()}
        found = ask(
            engine(fleet),
            [
                fleet.call("revoked", fingerprint=None, revoked=keys["revoked"]),
                fleet.call("foreign", fingerprint=None, foreign=keys["foreign"]),
            ],
        )
        reasons = {key: answer.failure.reason for key, answer in found.items() if answer.failure}
        assert reasons == {"revoked": "certificate revoked", "foreign": "certificate of another agent"}
        assert fleet.requests() == []


def test_certificates_that_do_not_hold_are_refused_with_the_reason(tmp_path: Path) -> None:
    """Expired, not yet valid, of another CA, or for clients only: each is refused and says why."""
    fleet = Fleet(tmp_path)
    other = TestCA(tmp_path / "other", name="Other CA")
    fleet.add("expired", leaf=fleet.authority.issue("expired", days=-1, starts_days=-30))
    fleet.add("early", leaf=fleet.authority.issue("early", starts_days=5))
    fleet.add("stranger", leaf=other.issue("stranger"))
    fleet.add("client", leaf=fleet.authority.issue("client", usages=(CLIENT,)))
    fleet.add("good")
    words = {
        "expired": "expired",
        "early": "not yet valid",
        "stranger": "issuer",
        "client": "purpose",
    }
    with fleet:
        found = ask(engine(fleet), fleet.calls(fingerprint=None))
        assert found.pop("good").status == 200
        for key, answer in found.items():
            assert answer.failure is not None
            assert (answer.failure.kind, answer.failure.sent) == ("refused", False)
            assert words[key] in answer.failure.reason
        assert {request["host"] for request in fleet.requests()} == {"good"}


def test_our_own_unknown_certificate_is_a_refusal(fleet: Fleet, tmp_path: Path) -> None:
    """An agent that does not trust our CA refuses; the request counts as not sent."""
    before = len(fleet.requests())
    stranger = TestCA(tmp_path).dispatcher()
    sender = FanOut(FanOutSettings(identity=str(stranger.pem), ca=fleet.ca))
    for answer in sender.send([fleet.call(f"host-{number:04d}") for number in range(1, 6)]):
        assert answer.failure is not None
        assert answer.failure.kind in ("refused", "lost")  # the alert can be overtaken by a reset
        if answer.failure.kind == "refused":
            assert not answer.failure.sent
            assert "the agent refused our certificate" in answer.failure.reason
    assert len(fleet.requests()) == before


def test_nobody_listens(fleet: Fleet) -> None:
    """A refused connection is `unreachable`, at once."""
    calls = [fleet.call("host-0001", key="closed", port=1), fleet.call("host-0002")]
    found = ask(engine(fleet), calls)
    failure = found["closed"].failure
    assert failure is not None
    assert (failure.kind, failure.reason, failure.sent) == ("unreachable", "connection refused", False)
    assert found["host-0002"].status == 200


def test_the_deadline_ends_what_is_still_open(fleet: Fleet) -> None:
    """A call whose time is over is given up, also one that was never started."""
    import time

    past = [
        fleet.call("host-0001", key=f"past-{number}", deadline=time.monotonic() - 1) for number in range(20)
    ]
    soon = [fleet.call("slow", deadline=time.monotonic() + 3)]
    for answer in engine(fleet).send(past + soon):
        assert answer.failure is not None
        assert answer.failure.kind == "timeout"
        assert answer.failure.sent == (answer.key == "slow")


# Processes that die. The sender is a program of its own, so that it can be killed.

SENDER = """
import json, os, sys
from ctrl_exec.services.fanout import FanOut, FanOutSettings, Call
told = json.load(sys.stdin)
calls = [Call(**{**call, "request": call["request"].encode()}) for call in told["calls"]]
for answer in FanOut(FanOutSettings(**told["settings"])).send(calls):
    failure = answer.failure and [answer.failure.kind, answer.failure.reason, answer.failure.sent]
    print(json.dumps([answer.key, answer.status, failure]), flush=True)
"""


@contextlib.contextmanager
def sender_of(fleet: Fleet, calls: list[Call], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that sends the calls and prints each answer as a line of the log."""
    shown = [
        {
            "key": call.key, "host": call.host, "port": call.port, "request": call.request.decode(),
            "fingerprint": call.fingerprint, "read_timeout_s": call.read_timeout_s,
        }
        for call in calls
    ]  # fmt: skip
    settings = {"identity": str(fleet.identity.pem), "ca": fleet.ca}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SENDER], stdin=subprocess.PIPE, stdout=output, text=True, env=environment()
        )
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(json.dumps({"settings": settings, "calls": shown}))
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)


def printed(log: Path) -> dict[str, list[object]]:
    """What the sender has printed so far: [status, failure] by key."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {key: [status, failure] for key, status, failure in lines}


def test_a_worker_that_is_killed_loses_only_what_it_owed(fleet: Fleet, tmp_path: Path) -> None:
    """Its unanswered calls are `lost`, the other workers' are answered."""
    honest = [fleet.call(f"host-{number:04d}") for number in range(1, HONEST + 1)]
    slow = [fleet.call("slow", key=f"slow-{number}", read_timeout_s=300) for number in range(8)]
    log = tmp_path / "answers"
    with sender_of(fleet, honest + slow, log) as process:
        eventually(lambda: len(printed(log)) == HONEST)
        workers = children_of(process.pid)
        assert workers
        os.kill(workers[0], signal.SIGKILL)
        lost = eventually(lambda: {key: each for key, each in printed(log).items() if key.startswith("slow")})
        assert all(each == [None, ["lost", "the fan-out worker died", True]] for each in lost.values())
        for pid in workers[1:]:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(60) == 0
    assert len(printed(log)) == HONEST + len(slow)


def test_workers_die_with_their_caller(fleet: Fleet, tmp_path: Path) -> None:
    """A caller that is killed leaves no process behind."""
    calls = [fleet.call("slow", key=f"slow-{number}", read_timeout_s=300) for number in range(20)]
    with sender_of(fleet, calls, tmp_path / "answers") as process:
        workers = eventually(lambda: children_of(process.pid))
        process.kill()
        process.wait(60)
        eventually(lambda: not any(is_alive(pid) for pid in workers))


@pytest.mark.root
def test_a_cut_network_is_a_timeout_for_its_host_alone(fleet: Fleet, tmp_path: Path) -> None:
    """Packets to one agent are dropped in the middle of its run: read timeout there, answers elsewhere."""
    with namespace() as (name, ip):
        far = Fleet(tmp_path, command_prefix=("ip", "netns", "exec", name))
        far.add("far", ip=ip, delay_s=600)
        with far:
            sender = FanOut(FanOutSettings(identity=str(far.identity.pem), ca=far.ca, connect_timeout_s=2.0))
            near = FanOut(FanOutSettings(identity=str(fleet.identity.pem), ca=fleet.ca))
            answers = sender.send([far.call("far", read_timeout_s=3.0)])
            # the cut comes when the request is there: by a process, for this one waits for the answer
            with cutter(name, far.log_path):
                failure = next(iter(answers)).failure
                assert failure is not None
                assert (failure.kind, failure.reason, failure.sent) == (
                    "timeout",
                    "read timeout after 3s",
                    True,
                )
            failure = next(iter(sender.send([far.call("far")]))).failure
            assert failure is not None
            assert (failure.kind, failure.sent) == ("unreachable", False)
            assert failure.reason in ("connect timeout after 2s", "no route to host")
            assert next(iter(near.send([fleet.call("host-0001")]))).status == 200


@contextlib.contextmanager
def namespace() -> Iterator[tuple[str, str]]:
    """A network namespace of its own joined to ours by a veth pair; (name, the address in it)."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a network namespace")
    number = os.getpid()
    name, ours, theirs = f"ce{number}", f"cea{number}", f"ceb{number}"
    net = f"10.{200 + number % 50}.{number // 50 % 250}"

    def ip(*words: str, check: bool = True) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if check and done.returncode:
            pytest.skip(f"ip {' '.join(words)}: {done.stderr.strip()}")

    try:
        ip("netns", "add", name)
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("addr", "add", f"{net}.1/30", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", name, "addr", "add", f"{net}.2/30", "dev", theirs)
        ip("-n", name, "link", "set", theirs, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name, f"{net}.2"
    finally:
        ip("link", "del", ours, check=False)
        ip("netns", "del", name, check=False)


@contextlib.contextmanager
def cutter(name: str, log_path: Path) -> Iterator[None]:
    """A process that takes the namespace's link away once a request has been noted there."""
    link = f"ceb{name.removeprefix('ce')}"
    script = f"until [ -s {log_path} ]; do sleep 0.05; done; exec ip -n {name} link set {link} down"
    process = subprocess.Popen(["/bin/sh", "-c", script])
    try:
        yield
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(60)


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
