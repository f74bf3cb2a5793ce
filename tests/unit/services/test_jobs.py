"""The bytes between carriers and fan-out workers."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.certificate import Certificate
from ctrl_exec.common.errors import MessageError
from ctrl_exec.services import jobs
from ctrl_exec.services.transport import Answer, Call, Failure, Part

CALLS = st.builds(
    Call,
    key=st.just(""),
    host=st.text(max_size=20),
    port=st.integers(0, 65535),
    request=st.binary(max_size=200),
    fingerprint=st.none() | st.text("0123456789abcdef", max_size=64),
    limit_bytes=st.integers(0, 1 << 40),
    read_timeout_s=st.floats(0, 1e6),
    deadline=st.none() | st.floats(0, 1e9),
    revoked=st.frozensets(st.text(max_size=5), max_size=3),
    foreign=st.frozensets(st.text(max_size=5), max_size=3),
    streams=st.booleans(),
    stream_limit_bytes=st.integers(0, 1 << 40),
    wants_certificate=st.booleans(),
)
CERTIFICATE = Certificate(
    3, "abc", datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), "0" * 64, "host-a",
    ("urn:x",), ("host-a", "a"), ("1.3.6.1.5.5.7.3.1",),
)  # fmt: skip


@given(st.lists(CALLS, max_size=8), st.integers(1, 64))
def test_a_job_arrives_as_it_was_sent_in_whatever_pieces(calls: list[Call], piece: int) -> None:
    numbered = list(enumerate(calls))
    job = jobs.encode_job(numbered)
    reader = jobs.JobReader()
    found = None
    for at in range(0, len(job), piece):
        assert found is None
        found = reader.feed(job[at : at + piece])
    assert found is not None
    assert sorted(found, key=lambda each: each[0]) == numbered


def test_what_calls_have_in_common_goes_once() -> None:
    revoked = frozenset(f"{number:064x}" for number in range(100))
    calls = [
        (number, Call(str(number), "host", 1, b"r" * 100_000, None, revoked=revoked)) for number in range(500)
    ]
    assert len(jobs.encode_job(calls)) < 130_000


@given(st.binary(max_size=300))
def test_bytes_that_are_no_job_are_refused(payload: bytes) -> None:
    try:
        jobs.JobReader().feed(payload)
    except MessageError:
        return


@pytest.mark.parametrize(
    "text", [b"{}", b"[1]", b"[[1,2]]", b'[[0,1,2,null,[],[],[["x"]]]]', b"\xff", b"[" * 9000]
)
def test_json_that_is_no_job_is_refused(text: bytes) -> None:
    payload = len(text).to_bytes(4, "big") + b"\0\0\0\0" + text
    if text == b"{}":
        assert jobs.JobReader().feed(payload) == []
        return
    with pytest.raises(MessageError):
        jobs.JobReader().feed(payload)


def test_a_job_beyond_the_bounds_is_refused_from_its_head() -> None:
    with pytest.raises(MessageError, match="too large"):
        jobs.JobReader().feed(b"\xff" * 8)
    with pytest.raises(MessageError, match="too large"):
        jobs.encode_job([(0, Call("", "h", 1, bytes((64 << 20) + 1)))])
    with pytest.raises(MessageError, match="after its end"):
        jobs.JobReader().feed(jobs.encode_job([(0, Call("", "h", 1, b"x"))]) + b"x")


@pytest.mark.parametrize(
    "answer",
    [
        Answer("k", 200, b"body", 0.25, CERTIFICATE),
        Answer("k", failure=Failure("lost", "gone", sent=True)),
        Answer("k", 404, b"", 0.0, None),
    ],
)
def test_an_answer_arrives_as_it_was_sent(answer: Answer) -> None:
    frame = jobs.encode_answer(7, answer) + jobs.encode_unsent([1, 2]) + jobs.encode_refusal("no")
    reader = jobs.FrameReader()
    found = [each for at in range(len(frame)) for each in reader.feed(frame[at : at + 1])]
    number, known, body = found[0]
    assert number == 7
    assert jobs.decode_answer("k", known, body) == answer
    assert found[1:] == [(jobs.UNSENT, [1, 2], b""), (jobs.REFUSED, "no", b"")]


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(MessageError):
        list(jobs.FrameReader().feed(b"\0\0\0\1\0\0\0\1\0\0\0\0x"))
    for known in (None, [1], ["a", "b", "c"], [200, 0.1, [1, 2, 3, 4], None], [200, 0.1, None, [1]]):
        with pytest.raises(MessageError):
            jobs.decode_answer("k", known, b"")


def test_marks_tell_what_may_have_left() -> None:
    marks = jobs.new_marks(3)
    jobs.set_mark(marks, 1)
    assert [jobs.is_marked(marks, number) for number in range(3)] == [False, True, False]
    assert jobs.is_marked(marks, 99)  # what cannot be known is taken for the worse
    os.close(marks)


def test_a_listener_is_for_our_own_user_and_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 50] * 4)  # longer than the address of a socket may be
    deep.mkdir(parents=True)
    with jobs.open_listener(str(deep), 0, 5) as old, jobs.open_listener(str(deep), 0, 5) as listener:
        assert stat.S_IMODE((deep / "0.sock").stat().st_mode) == 0o600
        assert [path.name for path in deep.iterdir()] == ["0.sock"]
        with jobs.connect(str(deep), 0) as link:
            accepted, _ = listener.accept()
            with accepted:
                assert jobs.is_own(link)
                assert jobs.is_own(accepted)
                marks = jobs.new_marks(1)
                jobs.send_job(link, b"job", marks)
                chunk, fds = jobs.receive_job(accepted, 100)
                assert chunk == b"job"
                jobs.set_mark(fds[0], 0)
                assert jobs.is_marked(marks, 0)
                assert not os.get_inheritable(fds[0])
                os.close(marks)
                os.close(fds[0])
        with pytest.raises(BlockingIOError):
            old.accept()


def test_where_nobody_listens_there_is_no_link(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        jobs.connect(str(tmp_path), 0)
    with pytest.raises(OSError):
        jobs.connect(str(tmp_path / "missing"), 0)
    jobs.open_listener(str(tmp_path), 0, 5).close()
    with pytest.raises(ConnectionRefusedError):
        jobs.connect(str(tmp_path), 0)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.binary(min_size=1, max_size=99)), max_size=9), st.integers(1, 64)
)
def test_parts_of_streams_arrive_between_answers_in_whatever_pieces(
    pieces: list[tuple[int, bytes]], piece: int
) -> None:
    wire = b"".join(jobs.encode_part(number, Part("", chunk)) for number, chunk in pieces)
    wire += jobs.encode_answer(3, Answer("x", 200))
    reader = jobs.FrameReader()
    found = [frame for at in range(0, len(wire), piece) for frame in reader.feed(wire[at : at + piece])]
    assert found[:-1] == [(number, None, chunk) for number, chunk in pieces]
    assert jobs.decode_answer("x", *found[-1][1:]) == Answer("x", 200)
