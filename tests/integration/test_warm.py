"""Fan-out workers that keep their connections, against emulated agents over real TLS."""

from __future__ import annotations

import io
import os
import resource
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctrl_exec.common.log import Log
from ctrl_exec.services import jobs
from ctrl_exec.services.descriptors import SPARE_FDS
from ctrl_exec.services.fanout import FanOut, FanOutSettings
from ctrl_exec.services.transport import Answer, Call, Interrupt
from ctrl_exec.services.warm import WarmTransport
from ctrl_exec.services.warm_crew import WarmCrew
from ctrl_exec.services.warm_worker import WarmSettings
from tests.integration.test_fanout_faults import namespace
from tests.support.emulated import Fleet
from tests.support.polling import eventually
from tests.support.processes import workers_of

COUNT = 24


class Warmth:
    """Workers in this process's care, and the transport that uses them."""

    BARE = 8  # descriptors of a worker without jobs: standard ones, listener, epoll, pipe, its daemon

    def __init__(
        self,
        fleet: Fleet,
        home: Path,
        *,
        idle_s: float = 300,
        workers: int = 2,
        connect_timeout_s: float = 5,
        hang_s: float = 60,
    ) -> None:
        self.directory = str(home / "workers")
        self.revoked = home / "revoked.json"
        self.identity = home / "identity.pem"
        self.identity.write_bytes(fleet.identity.pem.read_bytes())
        self.log = io.StringIO()
        self.crew = WarmCrew(self.directory, Log("test", stream=self.log))
        fan_out = FanOutSettings(
            identity=str(self.identity), ca=fleet.ca, connect_timeout_s=connect_timeout_s
        )
        self.settings = WarmSettings(fan_out, idle_s, str(self.revoked), workers, hang_s=hang_s)
        self.transport = WarmTransport(self.directory, workers, FanOut(fan_out))
        self.crew.start(self.settings)
        for number in range(workers):  # each is there once it has greeted
            with jobs.connect(self.directory, number) as link:
                assert select.select([link], [], [], 60)[0]
        eventually(lambda: self.descriptors() == workers * self.BARE, what="the greeted are gone")

    def pids(self) -> list[int]:
        """The workers."""
        return list(self.crew._workers)

    def descriptors(self) -> int:
        """How many descriptors the workers have in all."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())

    def ask(self, calls: list[Call]) -> dict[str, Answer]:
        """All answers by key; each call has exactly one."""
        answers = list(self.transport.send(calls))
        found = {answer.key: answer for answer in answers}
        assert len(found) == len(answers) == len(calls)
        return found

    def close(self) -> None:
        """End the workers and wait for it."""
        pids = self.pids()
        self.crew.retire()
        self.crew.leave()

        def are_gone() -> bool:
            self.crew.tend()
            return not any(os.path.exists(f"/proc/{pid}") for pid in pids)

        eventually(are_gone, what="the workers end")


def kept_call(fleet: Fleet, name: str, path: str = "/ping", **options: object) -> Call:
    """A call that asks for the connection to stay open."""
    made = fleet.call(name, path, **options)  # type: ignore[arg-type]
    request = made.request.replace(b"Connection: close", b"Connection: keep-alive")
    return fleet.call(name, path, request=request, **options)  # type: ignore[arg-type]


def kept_calls(fleet: Fleet, count: int = COUNT) -> list[Call]:
    """One such to each ordinary agent."""
    return [kept_call(fleet, f"host-{number:04d}") for number in range(1, count + 1)]


def are_good(found: dict[str, Answer]) -> bool:
    """Whether every one is answered."""
    return all(answer.status == 200 and answer.failure is None for answer in found.values())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Ordinary agents, and some with a way of their own."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    made.add_many(COUNT)
    for number in range(6):
        made.add(f"slow-{number}", delay_s=600)
    made.add("soon", delay_s=0.5)
    made.add("closes", closes_after=1)
    made.add("breaks", breaks_after=1)
    made.add("tickets", tickets=1, closes_after=1)
    made.add("older", older=True)
    made.add("mute", lie="no handshake")
    made.add("large", stdout_bytes=3 << 20)
    with made:
        yield made


@pytest.fixture
def warmth(fleet: Fleet, tmp_path: Path) -> Iterator[Warmth]:
    """Two workers."""
    made = Warmth(fleet, tmp_path)
    try:
        yield made
    finally:
        made.close()


def connections(fleet: Fleet, name: str) -> list[int]:
    """On which connection each request to the agent came."""
    return [each["connection"] for each in fleet.requests(name)]


def test_the_second_call_takes_the_connection_of_the_first(fleet: Fleet, warmth: Warmth) -> None:
    before = len(fleet.requests())
    for _ in range(3):
        found = warmth.ask(kept_calls(fleet))
        assert are_good(found)
        for key, answer in found.items():
            assert f'"host": "{key}"'.encode() in answer.body
            assert answer.certificate is not None
            assert answer.certificate.fingerprint == fleet.leaves[key].fingerprint
    seen = fleet.requests()[before:]
    assert len(seen) == 3 * COUNT
    assert len({each["connection"] for each in seen}) == COUNT


def test_at_most_two_idle_connections_are_kept_to_a_host(fleet: Fleet, warmth: Warmth) -> None:
    calls = [kept_call(fleet, "soon", key=f"call-{number}") for number in range(5)]
    assert are_good(warmth.ask(calls))
    before = len(connections(fleet, "soon"))
    assert are_good(warmth.ask(calls))
    again = connections(fleet, "soon")
    assert len(set(again[before:]) & set(again[:before])) == 2


def test_an_answer_that_closes_is_not_kept(fleet: Fleet, warmth: Warmth) -> None:
    for _ in range(2):
        assert are_good(warmth.ask([kept_call(fleet, "older"), fleet.call("host-0001")]))
    assert len(set(connections(fleet, "older"))) == len(connections(fleet, "older"))


def test_a_connection_that_the_agent_closed_is_not_used(fleet: Fleet, warmth: Warmth) -> None:
    bare = warmth.descriptors()
    for _ in range(5):
        assert are_good(warmth.ask([kept_call(fleet, "closes")]))
        # a request that is on its way when the agent closes would be lost: that is another test
        eventually(lambda: warmth.descriptors() <= bare, what="the end of the connection is seen")
    assert len(set(connections(fleet, "closes"))) == 5


def test_a_request_on_a_connection_that_breaks_is_lost_and_never_sent_again(
    fleet: Fleet, warmth: Warmth
) -> None:
    assert are_good(warmth.ask([kept_call(fleet, "breaks")]))
    failure = warmth.ask([kept_call(fleet, "breaks")])["breaks"].failure
    assert failure is not None
    assert (failure.kind, failure.sent) == ("lost", True)
    assert len(fleet.requests("breaks")) == 2
    assert are_good(warmth.ask([kept_call(fleet, "breaks")]))
    assert len(fleet.requests("breaks")) == 3


def test_a_session_is_resumed(fleet: Fleet, warmth: Warmth) -> None:
    def is_resumed() -> bool:
        answer = warmth.ask([kept_call(fleet, "tickets")])["tickets"]
        assert answer.certificate is not None
        assert answer.certificate.fingerprint == fleet.leaves["tickets"].fingerprint
        return bool(fleet.requests("tickets")[-1]["resumed"])

    eventually(is_resumed)


def test_a_large_answer_is_whole(fleet: Fleet, warmth: Warmth) -> None:
    body = {"script": "x", "reqid": "0" * 16}
    for _ in range(2):
        call = kept_call(fleet, "large", "/run", body=body, limit_bytes=8 << 20)
        assert warmth.ask([call, *kept_calls(fleet)])["large"].body.count(b"x") >= 3 << 20


def test_a_large_request_is_sent_whole(fleet: Fleet, warmth: Warmth) -> None:
    body = {"script": "x", "reqid": "0" * 16, "args": ["y" * 131_000] * 30}
    for _ in range(2):
        assert are_good(warmth.ask([kept_call(fleet, "host-0002", "/run", body=body)]))
    assert fleet.requests("host-0002")[-1]["body"]["args"] == body["args"]


def test_another_key_than_the_recorded_one_is_refused_on_a_kept_connection_too(
    fleet: Fleet, warmth: Warmth
) -> None:
    assert are_good(warmth.ask(kept_calls(fleet)))
    before = len(fleet.requests())
    shown = fleet.leaves["host-0001"].fingerprint
    for options in (
        {"fingerprint": "0" * 64},
        {"revoked": frozenset({shown})},
        {"foreign": frozenset({shown})},
    ):
        failure = warmth.ask([kept_call(fleet, "host-0001", **options)])["host-0001"].failure
        assert failure is not None
        assert (failure.kind, failure.sent) == ("refused", False)
    assert len(fleet.requests()) == before


def test_a_revocation_closes_idle_connections(fleet: Fleet, warmth: Warmth) -> None:
    bare = warmth.descriptors()
    assert are_good(warmth.ask(kept_calls(fleet)))
    eventually(lambda: warmth.descriptors() >= bare + COUNT)
    warmth.revoked.write_text("{}")
    eventually(lambda: warmth.descriptors() <= bare)


def test_a_new_identity_takes_new_connections(fleet: Fleet, warmth: Warmth) -> None:
    assert are_good(warmth.ask(kept_calls(fleet)))
    before = {each["connection"] for each in fleet.requests()}
    fresh = warmth.identity.with_suffix(".new")
    fresh.write_bytes(fleet.identity.pem.read_bytes())
    os.replace(fresh, warmth.identity)
    seen = len(fleet.requests())
    assert are_good(warmth.ask(kept_calls(fleet)))
    assert not before & {each["connection"] for each in fleet.requests()[seen:]}


def test_an_identity_that_cannot_be_used_is_said_before_anything_is_sent(
    fleet: Fleet, warmth: Warmth
) -> None:
    from ctrl_exec.common.errors import CertificateError

    warmth.identity.write_text("nothing")
    with pytest.raises(CertificateError):
        warmth.ask(kept_calls(fleet, 3))


def test_idle_connections_end_and_descriptors_come_back(fleet: Fleet, tmp_path: Path) -> None:
    warmth = Warmth(fleet, tmp_path, idle_s=1)
    try:
        bare = warmth.descriptors()
        assert are_good(warmth.ask(kept_calls(fleet)))
        eventually(lambda: warmth.descriptors() <= bare, what="descriptors are given back")
    finally:
        warmth.close()


def test_a_worker_that_hangs_is_ended_and_replaced(fleet: Fleet, tmp_path: Path) -> None:
    """By the kernel's clock, which only a worker that comes back to its loop sets back."""
    warmth = Warmth(fleet, tmp_path, workers=1, hang_s=2)
    try:
        (pid,) = warmth.pids()
        with asking(warmth, [kept_call(fleet, "slow-0")]) as answers:
            begun = eventually(lambda: fleet.requests("slow-0"))
            os.kill(pid, signal.SIGSTOP)  # it hangs
            eventually(lambda: is_pending(pid, signal.SIGALRM), what="the alarm")
            assert warmth.pids() == [pid]
            os.kill(pid, signal.SIGCONT)
        assert [answer.failure and answer.failure.kind for answer in answers] == ["lost"]
        assert fleet.requests("slow-0") == begun

        def is_replaced() -> bool:
            warmth.crew.tend()
            return bool(warmth.pids()) and warmth.pids() != [pid]

        eventually(is_replaced)
        assert f"STATUS={-signal.SIGALRM}" in warmth.log.getvalue()
        found = eventually(lambda: warmth.ask([kept_call(fleet, "host-0001")]))
        assert are_good(found)
    finally:
        warmth.close()


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a stopped process has a signal waiting."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("ShdPnd:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_worker_at_rest_is_not_taken_for_one_that_hangs(fleet: Fleet, tmp_path: Path) -> None:
    """Its wait is longer than the patience with a turn of its loop."""
    warmth = Warmth(fleet, tmp_path, workers=1, hang_s=0.4)
    try:
        (pid,) = warmth.pids()
        assert are_good(warmth.ask([kept_call(fleet, "soon")]))  # half a second
        assert warmth.pids() == [pid]
        assert os.path.exists(f"/proc/{pid}")
        warmth.crew.tend()
        assert warmth.log.getvalue() == ""
    finally:
        warmth.close()


def test_too_few_descriptors_are_said_with_the_number_to_set(tmp_path: Path) -> None:
    """Before they are missed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    log = io.StringIO()
    settings = WarmSettings(FanOutSettings("none.pem", "none.pem"), 300.0, "none", 1, agents=2 * hard)
    crew = WarmCrew(str(tmp_path / "workers"), Log("test", stream=log))
    crew.start(settings)
    pids = crew.retire()
    crew.leave()
    eventually(lambda: crew.tend() or not any(os.path.exists(f"/proc/{pid}") for pid in pids))  # type: ignore[func-returns-value]
    assert f"LimitNOFILE={2 * hard + SPARE_FDS}" in log.getvalue()
    assert f"KEPT={hard - SPARE_FDS}" in log.getvalue()


@contextmanager
def asking(warmth: Warmth, calls: list[Call]) -> Iterator[list[Answer]]:
    """The answers as they come, taken by a thread that is through at the end."""
    answers: list[Answer] = []

    def take() -> None:
        answers.extend(warmth.transport.send(calls))

    thread = threading.Thread(target=take)
    thread.start()
    yield answers
    thread.join(60)
    assert not thread.is_alive()


def test_the_death_of_a_worker_loses_what_it_had_sent_and_nothing_is_repeated(
    fleet: Fleet, warmth: Warmth
) -> None:
    before = len(fleet.requests())
    calls = [kept_call(fleet, f"slow-{number}") for number in range(6)]
    with asking(warmth, calls) as answers:
        eventually(lambda: len(fleet.requests()) == before + 6)
        old = warmth.pids()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
    assert len(answers) == 6
    for answer in answers:
        assert answer.failure is not None
        assert (answer.failure.kind, answer.failure.sent) == ("lost", True)
    assert len(fleet.requests()) == before + 6

    def are_replaced() -> bool:
        warmth.crew.tend()
        return not set(old) & set(warmth.pids()) and len(warmth.pids()) == 2

    eventually(are_replaced)
    assert "a worker died" in warmth.log.getvalue()
    assert are_good(warmth.ask(kept_calls(fleet)))
    assert are_good(warmth.ask(kept_calls(fleet)))


def test_what_a_dead_worker_never_sent_goes_over_a_fresh_connection(fleet: Fleet, warmth: Warmth) -> None:
    bare = warmth.descriptors()
    with asking(warmth, [kept_call(fleet, "mute")]) as answers:
        eventually(lambda: warmth.descriptors() >= bare + 3, what="it waits for the handshake")
        for pid in warmth.pids():
            os.kill(pid, signal.SIGKILL)
    failure = answers[0].failure
    assert failure is not None  # asked again by ourselves, in vain
    assert (failure.kind, failure.sent) == ("unreachable", False)
    assert "handshake" in failure.reason


def test_without_workers_calls_go_over_fresh_connections(fleet: Fleet, tmp_path: Path) -> None:
    warmth = Warmth(fleet, tmp_path)
    warmth.close()
    assert are_good(warmth.ask(kept_calls(fleet)))
    assert are_good(warmth.ask([kept_call(fleet, "host-0001")]))
    nowhere = WarmTransport(str(tmp_path / "nowhere"), 2, FanOut(warmth.settings.fan_out))
    assert [answer.status for answer in nowhere.send([kept_call(fleet, "host-0001")])] == [200]
    assert list(nowhere.send([])) == []


def test_a_retired_worker_carries_its_jobs_to_their_end(fleet: Fleet, warmth: Warmth) -> None:
    old = warmth.pids()
    before = len(fleet.requests("soon"))
    with asking(warmth, [kept_call(fleet, "soon")]) as answers:
        eventually(lambda: len(fleet.requests("soon")) == before + 1)
        warmth.crew.start(warmth.settings)
    assert answers[0].status == 200

    def are_gone() -> bool:
        warmth.crew.tend()
        return not any(os.path.exists(f"/proc/{pid}") for pid in old)

    eventually(are_gone)
    assert are_good(warmth.ask(kept_calls(fleet)))


def test_a_carrier_that_goes_takes_its_work_with_it(fleet: Fleet, warmth: Warmth) -> None:
    bare = warmth.descriptors()
    before = len(fleet.requests())
    names = ["host-0001", *(f"slow-{number}" for number in range(6))]
    answers = warmth.transport.send([kept_call(fleet, name) for name in names])
    assert next(iter(answers)).key == "host-0001"
    eventually(lambda: len(fleet.requests()) == before + len(names))
    answers.close()  # type: ignore[attr-defined]
    eventually(lambda: warmth.descriptors() <= bare + 1, what="the worker has dropped the calls")


def test_an_interrupt_tells_what_never_left(fleet: Fleet, warmth: Warmth) -> None:
    reading, writing = os.pipe()
    unsent: list[str] = []
    before = len(fleet.requests("slow-1"))
    interrupt = Interrupt((reading,), lambda: bool(select.select([reading], [], [], 0)[0]), unsent.extend)
    seen = []
    calls = [kept_call(fleet, name) for name in ("mute", "slow-1", "host-0002")]
    for answer in warmth.transport.send(calls, interrupt):
        seen.append(answer.key)
        eventually(lambda: len(fleet.requests("slow-1")) > before)
        os.write(writing, b"x")
    assert seen == ["host-0002"]
    assert unsent == ["mute"]
    os.close(reading)
    os.close(writing)


def test_a_worker_survives_those_who_speak_otherwise(fleet: Fleet, warmth: Warmth) -> None:
    pids = warmth.pids()
    for payload in (
        b"",
        b"x",
        b"\xff" * 64,
        b"\0\0\0\2\0\0\0\0[]",
        b"\0\0\0\2\0\0\0\0[1",
        b"\0\0\0\4\0\0\0\0[[1]",
    ):
        for number in range(2):
            with jobs.connect(warmth.directory, number) as link:
                link.setblocking(True)
                link.settimeout(60)
                assert link.recv(100) == jobs.HELLO
                link.sendall(payload)
                if len(payload) > 8:
                    assert link.recv(100) == b""
    assert are_good(warmth.ask(kept_calls(fleet)))
    assert warmth.pids() == pids
    assert set(pids) <= set(workers_of(os.getpid()))


def test_workers_end_with_their_daemon(fleet: Fleet, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            Warmth(fleet, tmp_path)
            signal.pause()
        finally:
            os._exit(1)
    found = eventually(lambda: workers_of(pid) if len(workers_of(pid)) == 2 else [])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    eventually(lambda: not any(os.path.exists(f"/proc/{each}") for each in found))


def test_few_descriptors_bound_the_connections(fleet: Fleet, tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            warmth = Warmth(fleet, tmp_path, workers=1)
            rounds = [warmth.ask(kept_calls(fleet)) for _ in range(2)]
            code = 0 if all(map(are_good, rounds)) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


@pytest.mark.root
def test_a_cut_network_loses_the_call_and_never_delivers_it_later(tmp_path: Path) -> None:
    """The request is in our kernel when the line is cut; when the line is back, it has not gone out."""
    with namespace() as (name, ip):
        link = f"ceb{name.removeprefix('ce')}"

        def turn(state: str) -> None:
            subprocess.run(["ip", "-n", name, "link", "set", link, state], check=True)

        far = Fleet(tmp_path / "far", command_prefix=("ip", "netns", "exec", name))
        far.add("far", ip=ip)
        with far:
            warmth = Warmth(far, tmp_path, connect_timeout_s=2)
            try:
                assert are_good(warmth.ask([kept_call(far, "far")]))
                turn("down")
                cut = kept_call(far, "far", body={"reqid": "cut"}, read_timeout_s=30)
                failure = warmth.ask([cut])["far"].failure
                assert failure is not None
                assert (failure.kind, failure.sent) == ("lost", True)
                # a packet that waits for its neighbour's address is in the network already
                subprocess.run(["ip", "neigh", "flush", "to", ip], check=False, capture_output=True)
                turn("up")
                eventually(lambda: are_good(warmth.ask([kept_call(far, "far")])))
                eventually(lambda: are_good(warmth.ask([kept_call(far, "far")])))
                assert "cut" not in [each["body"]["reqid"] for each in far.requests("far")]
            finally:
                warmth.close()


@pytest.mark.long
def test_a_thousand_agents_stay_connected_and_all_is_given_back(tmp_path: Path) -> None:
    many = Fleet(tmp_path / "fleet")
    many.add_many(1000)
    with many:
        warmth = Warmth(many, tmp_path, idle_s=15)
        try:
            bare = warmth.descriptors()
            for _ in range(3):
                assert are_good(warmth.ask(kept_calls(many, 1000)))
            assert len({each["connection"] for each in many.requests()}) <= 1100
            eventually(lambda: warmth.descriptors() <= bare, timeout_s=60)
        finally:
            warmth.close()
