"""Reading streamed answers: pieces told once, whole lines where there are lines, lies named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.output_stream import OutputPiece, cut_text, encode_piece
from ctrl_exec.services.agent_answers import run_result
from ctrl_exec.services.progress import Received
from ctrl_exec.services.streams import LINE_LIMIT_BYTES, OutputPart, Reading
from ctrl_exec.services.transport import Answer, Failure

LAST = {"script": "job", "exit": 0, "stdout": "", "stderr": "", "reqid": "0123456789abcdef"}
OVER = Answer("h", 200)


def piece(text: str, at: int, stream: str = "stdout") -> bytes:
    return encode_piece(OutputPiece(stream, text, at))


def last(**facts: object) -> bytes:
    return json.dumps(LAST | facts).encode() + b"\n"


def told(reading: Reading, *chunks: bytes) -> list[OutputPart]:
    return [part for chunk in chunks for part in reading.feed(chunk)]


def finished(reading: Reading, answer: Answer = OVER):
    """The parts that were held back, and the result."""
    parts, reply = reading.finish(answer)
    result = run_result(reply, "job", "0123456789abcdef", None)
    return parts, reading.remainder(result, reply.document)


@given(
    st.lists(st.text(alphabet="ab\né€", max_size=12), max_size=8),
    st.integers(1, 40),
    st.booleans(),
)
def test_whatever_the_network_does_the_output_is_whole(
    written: list[str], step: int, breaks_in_the_middle: bool
) -> None:
    """Pieces in any chunks, over one connection or two, are told once each, in order, with the rest."""
    raw = "".join(written).encode()
    stream, at = b"", 0
    for text in written:
        at += len(text.encode())
        stream += piece(text, at) if text else b""
    reading = Reading("h", None)
    parts = []
    cut = len(stream) // 2 if breaks_in_the_middle else len(stream)
    for start in range(0, cut, step):
        parts += told(reading, stream[start : min(cut, start + step)])
    if breaks_in_the_middle:
        rest, reply = reading.finish(Answer("h", failure=Failure("lost", "cut", sent=True)))
        assert reply.state == "lost"
        parts += rest
        offset = reading.offsets["stdout"]
        reading.begin()
        text, used = cut_text(raw[offset:], None, is_end=False)
        parts += told(reading, piece(text, offset + used) if text else b"")
    parts += told(reading, last(**{"from": {"stdout": len(raw), "stderr": 0}}))
    rest, result = finished(reading)
    parts += rest
    assert "".join(part.text for part in parts) + result.stdout == raw.decode()
    assert [part.at for part in parts] == sorted({part.at for part in parts})
    shown = ""
    for part in parts:
        shown += part.text
        assert part.at == len(shown.encode())


def test_an_unfinished_line_waits_for_a_moment() -> None:
    """A script that prints lines gives whole ones; what it leaves open comes after a tenth of a second."""
    reading = Reading("h", None)
    assert told(reading, piece("one\ntw", 6)) == [OutputPart("h", "stdout", "one\n", 4)]
    assert reading.is_holding
    assert list(reading.overdue(0.0)) == []
    assert told(reading, piece("o\n", 8)) == [OutputPart("h", "stdout", "two\n", 8)]
    assert not reading.is_holding
    assert told(reading, piece("thr", 11)) == []
    assert list(reading.overdue(float("inf"))) == [OutputPart("h", "stdout", "thr", 11)]


def test_a_very_long_line_is_not_held() -> None:
    """Nor is one with a character that was replaced: nobody knows how many bytes that was."""
    reading = Reading("h", None)
    assert [part.at for part in told(reading, piece("x" * 70_000, 70_000))] == [70_000]
    assert [part.text for part in told(reading, piece("a\n\ufffdb", 70_004))] == ["a\n\ufffdb"]


def test_what_was_told_before_is_not_told_again() -> None:
    """Also output of which only the characters are known."""
    reading = Reading("h", None, lambda _, stream: Received(4, 6, 2) if stream == "stdout" else Received())
    assert reading.offsets == {"stdout": 4, "stderr": 0}
    assert told(reading, piece("old\n", 4)) == []
    assert [part.text for part in told(reading, piece("abc\n", 8))] == ["c\n"]
    _, result = finished_with(reading, stdout="end", **{"from": {"stdout": 8, "stderr": 0}})
    assert result.stdout == "end"


def finished_with(reading: Reading, **facts: object):
    told(reading, last(**facts))
    return finished(reading)


def test_an_agent_that_tells_all_of_it_again_is_cut_to_the_rest() -> None:
    """One that does not stream knows nothing of places."""
    reading = Reading("h", None, lambda _, stream: Received(4, 4, 0) if stream == "stdout" else Received())
    body = json.dumps(LAST | {"stdout": "one\ntwo\n"}).encode()
    _, result = finished(reading, Answer("h", 200, body))
    assert result.stdout == "two\n"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([b"nonsense\n"], "invalid answer"), ([b"[]\n"], "invalid answer"), ([piece("a", 1, "stdin")], "expected stdout"),
        ([last(), last()], "after the last one"), ([last(**{"from": {"stdout": 9}})], "does not follow"),
        ([last(**{"from": [1]})], "invalid answer"), ([b"x" * (LINE_LIMIT_BYTES + 1)], "too large"),
    ],
)  # fmt: skip
def test_a_lie_is_that_hosts_result(lines: list[bytes], words: str) -> None:
    """Named, and nothing after it is believed."""
    reading = Reading("h", None)
    told(reading, *lines)
    _, result = finished(reading)
    assert result.state == "failed"
    assert words in result.error


def test_base64_that_cannot_be_put_together_is_refused() -> None:
    """Its pieces must be whole groups."""
    reading = Reading("h", "base64")
    told(reading, piece("YWJ", 2))
    assert finished(reading)[1].state == "failed"


def test_a_stream_without_a_result_is_a_broken_connection() -> None:
    """However politely it was closed."""
    reading = Reading("h", None)
    told(reading, piece("a\n", 2))
    assert finished(reading)[1].state == "lost"
    refused = reading.finish(Answer("h", 403, b'{"error": "forbidden"}'))[1]
    assert refused.state == "refused"


def test_a_piece_of_nothing_says_that_the_script_runs() -> None:
    """Whatever else has come; it moves nothing."""
    reading = Reading("h", None)
    assert told(reading, piece("", 0)) == [OutputPart("h", "stdout", "", 0)]
    assert told(reading, piece("one\n", 4), piece("", 4)) == [
        OutputPart("h", "stdout", "one\n", 4), OutputPart("h", "stdout", "", 4),
    ]  # fmt: skip
    assert reading.offsets == {"stdout": 4, "stderr": 0}


@pytest.mark.parametrize(
    ("document", "note"),
    [
        (LAST | {"stdout": "late\n"}, "older agent: its output came at the end"),
        ({"script": "job", "exit": -1, "error": "script not permitted"}, ""),
    ],
)
def test_a_plain_answer_with_output_is_an_older_agents(document: dict[str, object], note: str) -> None:
    """A refusal is plain as well."""
    _, result = finished(Reading("h", None), Answer("h", 200, json.dumps(document).encode()))
    assert result.note == note
    reading = Reading("h", None)
    told(reading, last(stdout="in time\n"))
    assert finished(reading)[1].note == ""
