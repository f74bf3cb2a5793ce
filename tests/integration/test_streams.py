"""Answers that are passed on as they come: in this process, over workers, and over warm connections."""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctrl_exec.common import tls
from ctrl_exec.services.exchange import READING, Exchange
from ctrl_exec.services.fanout import WORKERS_FROM, FanOut, FanOutSettings
from ctrl_exec.services.transport import Answer, Call, Interrupt, Part, Transport
from tests.integration.test_fanout import workers
from tests.integration.test_warm import Warmth, kept_call
from tests.support.emulated import Fleet
from tests.support.polling import eventually
from tests.support.streams import END, TYPE, Stream, chunk
from tests.support.tls_server import scripted

WAYS = ("here", "workers", "warm")
REQUEST = b"POST /run HTTP/1.1\r\nHost: agent\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n{}"
PIECES = [b'{"stream":"stdout","text":"one"}\n', b"half a li", b"ne\n", b"x" * 100_000]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Agents that answer at once, and one that never stops."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    made.add_many(WORKERS_FROM)
    made.add("endless", lie="endless chunks")
    made.add("slow", delay_s=600)
    with made:
        yield made


class Way:
    """One of the three ways, and company that makes calls go it."""

    def __init__(self, fleet: Fleet, transport: Transport, company: Sequence[Call]) -> None:
        self.fleet = fleet
        self.transport = transport
        self.company = company

    def send(self, *calls: Call, interrupt: Interrupt | None = None) -> Iterator[Answer | Part]:
        """What comes of the calls, without their company's answers."""
        keys = {call.key for call in calls}
        for each in self.transport.send([*calls, *self.company], interrupt):
            if each.key in keys:
                yield each


@contextmanager
def way_of(name: str, fleet: Fleet, home: Path) -> Iterator[Way]:
    """The way of that name."""
    fresh = FanOut(FanOutSettings(identity=str(fleet.identity.pem), ca=fleet.ca, workers=1))
    if name == "here":
        yield Way(fleet, fresh, [])
    elif name == "workers":
        company = [fleet.call(f"host-{number:04d}") for number in range(1, WORKERS_FROM + 1)]
        yield Way(fleet, fresh, company)
    else:
        warmth = Warmth(fleet, home, workers=1)
        try:
            yield Way(fleet, warmth.transport, [])
        finally:
            warmth.close()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, fleet: Fleet, tmp_path: Path) -> Iterator[Way]:
    """Each in turn."""
    with way_of(request.param, fleet, tmp_path) as made:
        yield made


@contextmanager
def streaming(fleet: Fleet, script: Stream, **options: object) -> Iterator[Call]:
    """A call that the script answers."""
    leaf = fleet.authority.issue("streamer")
    with scripted(leaf.pem, script) as server:
        settings: dict[str, object] = {"read_timeout_s": 20.0, "limit_bytes": 1000, "streams": True}
        yield Call("streamer", "127.0.0.1", server.port, REQUEST, leaf.fingerprint, **(settings | options))  # type: ignore[arg-type]


def split(found: list[Answer | Part]) -> tuple[bytes, Answer]:
    """What was streamed, and the answer, which must be the last."""
    *parts, answer = found
    assert isinstance(answer, Answer)
    streamed = [each.chunk for each in parts if isinstance(each, Part)]
    assert len(streamed) == len(parts)
    return b"".join(streamed), answer


def test_each_piece_comes_before_the_next_is_sent(way: Way) -> None:
    """Whole or not, larger than the limit or not; at the end the answer without a body."""
    script = Stream([chunk(each) for each in PIECES])
    with streaming(way.fleet, script) as call:
        found = way.send(call)
        for piece in PIECES:
            script.go.release()
            seen = b""
            while len(seen) < len(piece):
                part = next(found)
                assert isinstance(part, Part)
                assert part.key == "streamer"
                seen += part.chunk
            assert seen == piece
        answer = next(found)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.body, answer.failure) == (200, b"", None)
        assert answer.certificate is not None
        assert list(found) == []


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (TYPE, sum(map(len, PIECES))),
        b"HTTP/1.0 200 OK\r\n%s\r\n" % TYPE,
    ],
    ids=["counted", "until the end"],
)
def test_a_body_that_is_not_chunked_streams_too(way: Way, head: bytes) -> None:
    script = Stream(PIECES, last=b"", head=head)
    script.go.release(len(PIECES))
    with streaming(way.fleet, script) as call:
        streamed, answer = split(list(way.send(call)))
    assert streamed == b"".join(PIECES)
    assert (answer.status, answer.failure) == (200, None)


def test_a_refusal_has_its_body_in_the_answer(way: Way) -> None:
    script = Stream([], last=b'{"error":"no"}', head=b"HTTP/1.1 403 Forbidden\r\nContent-Length: 14\r\n\r\n")
    with streaming(way.fleet, script) as call:
        (answer,) = way.send(call)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body) == (403, b'{"error":"no"}')


@pytest.mark.parametrize("wants_certificate", [True, False])
def test_a_single_line_that_came_with_its_end_is_a_body(way: Way, wants_certificate: bool) -> None:
    """As of scripts that print nothing; and the certificate is told only to those who want it."""
    line = b'{"exit":0}\n'
    head = b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (TYPE, len(line))
    script = Stream([], last=b"", head=head + line)
    with streaming(way.fleet, script, wants_certificate=wants_certificate) as call:
        (answer,) = way.send(call)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body, answer.failure) == (200, line, None)
    assert (answer.certificate is not None) == wants_certificate


def test_two_lines_that_came_with_their_end_are_a_part(way: Way) -> None:
    lines = b'{"stream":"stdout","text":"a","at":1}\n{"exit":0}\n'
    head = b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (TYPE, len(lines))
    script = Stream([], last=b"", head=head + lines)
    with streaming(way.fleet, script) as call:
        streamed, answer = split(list(way.send(call)))
    assert (streamed, answer.body) == (lines, b"")


@pytest.mark.parametrize(
    ("last", "kind"), [(b"", "lost"), (b"nonsense\r\n", "protocol")], ids=["a break", "nonsense"]
)
def test_what_came_before_a_fault_is_passed_on(way: Way, last: bytes, kind: str) -> None:
    script = Stream([chunk(b"good")], last=last)
    script.go.release()
    with streaming(way.fleet, script) as call:
        streamed, answer = split(list(way.send(call)))
    assert streamed == b"good"
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.sent) == (kind, True)


def test_a_stream_has_a_bound_of_its_own(way: Way) -> None:
    """Not the one of answers that are held, which it exceeds a hundred times."""
    call = way.fleet.call("endless", limit_bytes=10_000, streams=True, stream_limit_bytes=1 << 20)
    streamed, answer = split(list(way.send(call)))
    assert 512 * 1024 < len(streamed) <= 1 << 20
    assert answer.failure is not None
    assert (answer.failure.kind, answer.failure.sent) == ("too large", True)


def test_an_endless_stream_holds_up_nobody(way: Way) -> None:
    """The others are answered while it goes on, and letting go of it ends it."""
    endless = way.fleet.call("endless", streams=True)
    others = [way.fleet.call(f"host-{number:04d}", key=f"other-{number}") for number in range(1, 4)]
    answers = (each for each in way.send(endless, *others) if isinstance(each, Answer))
    seen = {answer.key for answer in itertools.islice(answers, 3)}
    assert seen == {call.key for call in others}


def test_an_interrupt_that_no_descriptor_tells_of_is_noticed(way: Way) -> None:
    asked = []

    def is_set() -> bool:
        asked.append(1)
        return len(asked) > 5

    assert list(way.send(way.fleet.call("slow"), interrupt=Interrupt((), is_set, poll_s=0.05))) == []
    assert len(asked) == 6


def test_the_death_of_a_fan_out_worker_ends_a_stream_as_lost(fleet: Fleet, tmp_path: Path) -> None:
    script = Stream([chunk(b"good"), chunk(b"never")])
    script.go.release()
    with way_of("workers", fleet, tmp_path) as way, streaming(fleet, script) as call:
        found = way.send(call)
        assert next(found) == Part("streamer", b"good")
        (pid,) = workers()
        os.kill(pid, signal.SIGKILL)
        (answer,) = found
        assert isinstance(answer, Answer)
        assert answer.failure is not None
        assert (answer.failure.kind, answer.failure.sent) == ("lost", True)
        script.go.release()


def test_the_death_of_a_warm_worker_ends_a_stream_as_lost(fleet: Fleet, tmp_path: Path) -> None:
    script = Stream([chunk(b"good"), chunk(b"never")])
    script.go.release()
    warmth = Warmth(fleet, tmp_path, workers=1)
    try:
        with streaming(fleet, script) as call:
            found = warmth.transport.send([call])
            assert next(found) == Part("streamer", b"good")
            os.kill(warmth.pids()[0], signal.SIGKILL)
            (answer,) = found
            assert isinstance(answer, Answer)
            assert answer.failure is not None
            assert (answer.failure.kind, answer.failure.sent) == ("lost", True)
            script.go.release()
    finally:
        warmth.close()


def cpu_ticks(pid: int) -> int:
    """The processor time a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def resident_bytes(pid: int) -> int:
    """The memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_carrier_that_stands_still_costs_a_worker_little(fleet: Fleet, tmp_path: Path) -> None:
    """Nothing is read for it, others are served by the same worker, and then it goes on."""
    warmth = Warmth(fleet, tmp_path, workers=1)
    try:
        (pid,) = warmth.pids()
        assert warmth.ask([kept_call(fleet, "host-0001")])["host-0001"].status == 200
        before = resident_bytes(pid)
        endless = [kept_call(fleet, "endless", key=f"endless-{number}", streams=True) for number in range(8)]
        found = warmth.transport.send(endless)
        assert isinstance(next(found), Part)
        seen: list[int] = []

        def stands_still() -> bool:
            seen.append(cpu_ticks(pid))
            return len(seen) > 5 and seen[-1] == seen[-5]

        eventually(stands_still, what="the worker waits for its carrier")
        assert resident_bytes(pid) < before + (24 << 20)
        assert warmth.ask([kept_call(fleet, "host-0002")])["host-0002"].status == 200
        taken: dict[str, int] = dict.fromkeys((call.key for call in endless), 0)
        while min(taken.values()) < 2 << 20:  # every one of them goes on
            part = next(found)
            assert isinstance(part, Part)
            taken[part.key] += len(part.chunk)
        assert resident_bytes(pid) < before + (24 << 20)
        del found  # lets go of the job
    finally:
        warmth.close()


def test_silence_counts_from_the_last_piece(fleet: Fleet) -> None:
    """However little comes at a time, and however long it goes on."""
    identity = str(fleet.identity.pem)
    context = tls.client_context(identity, identity, ca=fleet.ca)
    pieces = [chunk(b"a drop") for _ in range(5)]
    script = Stream(pieces)
    with streaming(fleet, script, read_timeout_s=10.0) as call:
        exchange = Exchange(0, call, 10.0)
        exchange.open(((socket.AF_INET, "127.0.0.1"),), 0.0)

        def after_a_step(now: float) -> Exchange:
            exchange.step(context, now)
            return exchange

        poller = select.poll()
        poller.register(exchange.sock.fileno() if exchange.sock else -1, select.POLLOUT)
        assert poller.poll(20_000)
        eventually(lambda: after_a_step(0.0).phase == READING)
        for moment in range(9, 9 * len(pieces) + 1, 9):
            script.go.release()
            assert eventually(lambda now=moment: after_a_step(now).take_part()) == b"a drop"  # type: ignore[misc]
            assert exchange.deadline == moment + 10.0
        answer = eventually(lambda: after_a_step(50.0).answer)
        assert answer is not None
        assert answer.status == 200


def test_a_stream_that_ends_well_leaves_its_connection_for_the_next(fleet: Fleet, tmp_path: Path) -> None:
    """The last chunk ends the answer, not the connection."""
    both: list[bytes] = []

    def serve(visitor: object) -> None:
        for _ in range(2):
            script = Stream([chunk(b"good")], last=END)
            script.go.release()
            script(visitor)  # type: ignore[arg-type]
            both.append(b"served")

    leaf = fleet.authority.issue("streamer")
    warmth = Warmth(fleet, tmp_path, workers=1)
    try:
        with scripted(leaf.pem, serve) as server:
            for _ in range(2):
                call = Call("s", "127.0.0.1", server.port, REQUEST, leaf.fingerprint, streams=True)
                streamed, answer = split(list(warmth.transport.send([call])))
                assert (streamed, answer.status) == (b"good", 200)
            assert both == [b"served"] * 2
    finally:
        warmth.close()
