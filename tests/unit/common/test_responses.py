"""The response reader: HTTP/1.0 and 1.1, in any pieces, within limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.errors import PeerError
from ctrl_exec.common.responses import ResponseParser

WHOLE = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    (b"HTTP/1.1 200\r\ncontent-length:0\r\n\r\n", 200, b"", True),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n", 404, b"no\n", False),
    (b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", False),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX: y\r\n\r\n",
        200,
        b"abcde",
        True,
    ),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
]


@pytest.mark.parametrize(("raw", "status", "body", "alive"), WHOLE)
def test_a_response_is_read_whole_and_byte_by_byte(raw: bytes, status: int, body: bytes, alive: bool) -> None:
    for step in (len(raw), 1, 3):
        parser = ResponseParser(1000)
        assert not parser.has_started
        for at in range(0, len(raw), step):
            done = parser.feed(raw[at : at + step])
        assert done
        assert (parser.status, parser.body, parser.keeps_alive, parser.rest) == (status, body, alive, b"")
        parser.end()


def test_a_body_without_length_ends_with_the_connection() -> None:
    parser = ResponseParser(1000)
    assert not parser.feed(b"HTTP/1.0 200 OK\r\n\r\nall ")
    assert not parser.feed(b"of it")
    parser.end()
    assert parser.is_done
    assert parser.body == b"all of it"
    assert not parser.keeps_alive


def test_two_responses_on_one_connection_leave_the_second_over() -> None:
    parser = ResponseParser(1000)
    assert parser.feed(WHOLE[0][0] + WHOLE[3][0])
    assert parser.rest == WHOLE[3][0]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"SSH-2.0-OpenSSH", "no HTTP"), (b"\x15\x03\x01\x00\x02\x02\x46", "no HTTP"),
        (b"HTTP/2 200\r\n\r\n", "no HTTP"), (b"HTTP/1.1 2x0 OK\r\n\r\n", "status line"), (b"HTTP/1.1 999 OK\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "header line"), (b"HTTP/1.1 200 OK\r\na : b\r\n\r\n", "header line"),
        (b"HTTP/1.1 200 OK\r\na: b\0\r\n\r\n", "header line"), (b"HTTP/1.1 200 OK\r\n folded\r\n\r\n", "header line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", "content-length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "two content-length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "transfer coding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", "transfer coding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", "chunk end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 400, "bad chunk"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100 + b"\r\n", "too many headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 40_000, "exceed"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 40_000 + b"\r\n\r\n", "exceed"),
    ],
)  # fmt: skip
def test_a_peer_that_speaks_wrongly_is_named(raw: bytes, says: str) -> None:
    with pytest.raises(PeerError, match=says):
        ResponseParser(1000).feed(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3ea\r\n" + b"x" * 1002,
    ],
)  # fmt: skip
def test_an_answer_that_is_too_large_is_refused_before_it_is_read(raw: bytes) -> None:
    with pytest.raises(PeerError, match="answer too large") as caught:
        ResponseParser(1000).feed(raw)
    assert caught.value.kind == "too large"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_an_early_end_is_an_error(raw: bytes) -> None:
    parser = ResponseParser(1000)
    parser.feed(raw)
    with pytest.raises(PeerError, match="before its answer was whole"):
        parser.end()


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_read_or_refused(raw: bytes, with_head: bool) -> None:
    parser = ResponseParser(100)
    try:
        parser.feed((b"HTTP/1.1 200 OK\r\n" if with_head else b"") + raw)
        parser.end()
    except PeerError as error:
        assert str(error)
    assert parser.body_bytes <= 100 or not parser.is_done


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.integers(1, 40))
def test_a_stream_is_given_as_it_comes_and_not_held(pieces: list[bytes], step: int) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    parser = ResponseParser(1, stream_limit_bytes=400)
    taken = []
    for at in range(0, len(raw), step):
        parser.feed(raw[at : at + step])
        taken.append(parser.drain())
        assert len(taken[-1]) <= step
    assert b"".join(taken) == b"".join(pieces)
    assert (parser.is_done, parser.body) == (True, b"")


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 11\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nb\r\n"]
)
def test_a_stream_beyond_its_bound_is_refused(framing: bytes) -> None:
    parser = ResponseParser(1000, stream_limit_bytes=10)
    with pytest.raises(PeerError, match="too large"):
        parser.feed(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n" + framing + b"x" * 11)


def test_only_a_200_streams() -> None:
    parser = ResponseParser(10, stream_limit_bytes=1)
    assert parser.feed(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    assert (parser.drain(), parser.body) == (b"", b"no")
