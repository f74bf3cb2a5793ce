"""Whatever bytes come, the request parser gives a request or its one named error."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl_exec.common.errors import ProtocolError
from ctrl_exec.common.parser import ParserLimits, RequestParser

LIMITS = ParserLimits(request_line_bytes=200, header_lines=8, header_bytes=300, body_bytes=100)
TOKEN = st.text("abcXYZ019-_.!~", min_size=1, max_size=12)
WORDS = st.sampled_from(
    [
        b"GET ", b"POST ", b"/", b"*", b"?a=b", b"%41", b"%", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r",
        b"Host: a\r\n", b"Content-Length: 3\r\n", b"Content-Length: 03\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n", b"3\r\nabc\r\n", b"0\r\n", b";", b"a=b", b" ", b"\t", b"\0", b"abc", b":", b"http://a",
    ]
)  # fmt: skip


def outcome(pieces: list[bytes]) -> object:
    parser = RequestParser(LIMITS)
    try:
        for piece in pieces:
            parser.feed(piece)
        parser.check_leftover()
    except ProtocolError as error:
        assert error.status in (400, 413, 414, 417, 431, 501, 505)
        return error.status
    return parser.is_done, parser.head, parser.body, parser.leftover


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS | st.binary(max_size=8), max_size=25))
def test_any_bytes_give_a_request_or_a_protocol_error_however_they_are_cut(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    whole = outcome([raw])
    assert outcome(pieces) == whole
    assert outcome([raw[at : at + 1] for at in range(len(raw))]) == whole


@settings(max_examples=200, deadline=None)
@given(
    method=TOKEN,
    segments=st.lists(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=6), max_size=4),
    headers=st.lists(st.tuples(TOKEN, st.text("abc ;,=\t", max_size=10)), max_size=5),
    body=st.binary(max_size=100),
    is_chunked=st.booleans(),
)  # fmt: skip
def test_what_was_written_is_what_is_read(
    method: str, segments: list[str], headers: list[tuple[str, str]], body: bytes, is_chunked: bool
) -> None:
    escaped = "/" + "/".join("".join(f"%{byte:02x}" for byte in part.encode()) for part in segments)
    fields = [("x-" + name, text) for name, text in headers]
    lines = [f"{method} {escaped} HTTP/1.1", "Host: a", *(f"{name}: {text}" for name, text in fields)]
    if is_chunked:
        lines.append("Transfer-Encoding: chunked")
        sent = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    else:
        lines.append(f"Content-Length: {len(body)}")
        sent = body
    raw = ("\r\n".join(lines) + "\r\n\r\n").encode() + sent
    parser = RequestParser(ParserLimits())
    parser.feed(raw)
    head = parser.head
    assert parser.is_done
    assert head is not None
    assert head.method == method
    assert head.path == "/" + "/".join(part.replace("/", "%2F") for part in segments)
    assert parser.body == body
    kept = [(name, text) for name, text in head.headers if name.startswith("x-")]
    assert kept == [(name.lower(), text.strip(" \t")) for name, text in fields]
