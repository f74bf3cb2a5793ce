"""The request parser against raw bytes: the outcome is the same however the bytes are cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.errors import ProtocolError
from ctrl_exec.common.parser import ParserLimits, RequestParser

HERE = Path(__file__).parent
VALID = sorted((HERE / "valid").glob("*.http"))
INVALID = sorted((HERE / "invalid").glob("*.http"))
CUTS = ("whole", "lines", "bytes", "pieces")


def cut(raw: bytes, how: str, seed: str) -> Iterator[bytes]:
    if how == "whole":
        yield raw
    elif how == "lines":
        yield from raw.splitlines(keepends=True)
    elif how == "bytes":
        yield from (raw[at : at + 1] for at in range(len(raw)))
    else:
        chance = random.Random(seed)
        while raw:
            size = chance.randint(1, 40)
            yield raw[:size]
            raw = raw[size:]


def parse(raw: bytes, how: str, seed: str) -> RequestParser:
    parser = RequestParser(ParserLimits())
    for piece in cut(raw, how, seed):
        parser.feed(piece)
    parser.check_leftover()
    return parser


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_request_is_read_as_it_was_meant(path: Path, how: str) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    parser = parse(path.read_bytes(), how, path.stem)
    head = parser.head
    assert parser.is_done
    assert head is not None
    assert {
        "method": head.method,
        "path": head.path,
        "query": [list(pair) for pair in head.query],
        "version": head.version,
        "body": parser.body.decode(),
        "keep_alive": head.keep_alive,
        "leftover": parser.leftover.decode(),
    } == expected


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_request_is_refused_with_its_status(path: Path, how: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(path.read_bytes(), how, path.stem)
    assert caught.value.status == int(path.stem[:3])
    assert str(caught.value)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_request_that_is_cut_short_is_never_done(path: Path) -> None:
    raw = path.read_bytes()
    leftover = len(json.loads(path.with_suffix(".json").read_text())["leftover"])
    whole = len(raw) - leftover
    for end in range(0, whole, max(1, whole // 200)):
        parser = RequestParser(ParserLimits())
        parser.feed(raw[:end])
        assert not parser.is_done


def test_limits_are_settings() -> None:
    limits = ParserLimits(request_line_bytes=20, header_lines=2, header_bytes=40, body_bytes=3)
    head = b"POST / HTTP/1.1\r\nHost: a\r\n"
    for raw, status in (
        (b"GET /123456789 HTTP/1.1\r\n", 414),
        (head + b"X: y\r\nX: y\r\n\r\n", 431),
        (head + b"X: " + b"y" * 40 + b"\r\n\r\n", 431),
        (head + b"Content-Length: 4\r\n\r\n", 413),
    ):
        with pytest.raises(ProtocolError) as caught:
            RequestParser(limits).feed(raw)
        assert caught.value.status == status
    parser = RequestParser(limits)
    parser.feed(head + b"Content-Length: 3\r\n\r\nabc")
    assert parser.is_done
    assert parser.body == b"abc"


def test_a_parser_says_whether_anything_came() -> None:
    parser = RequestParser(ParserLimits())
    assert not parser.has_started
    parser.feed(b"\r\n")
    assert parser.has_started
    parser.feed(b"G")
    assert parser.has_started
    assert not parser.is_done


def test_expect_is_noted_only_where_a_body_follows() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    for more, expects in ((b"Content-Length: 5\r\n\r\n", True), (b"Content-Length: 0\r\n\r\n", False)):
        parser = RequestParser(ParserLimits())
        parser.feed(head + more)
        assert parser.head is not None
        assert parser.head.expects_continue is expects
        assert parser.head.header("expect") == "100-continue"
        assert parser.head.header("x-none") is None
