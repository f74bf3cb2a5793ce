"""Lines of live output: pieces put together are the whole, wherever they were cut."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.errors import MessageError
from ctrl_exec.common.messages import output_text
from ctrl_exec.common.output_stream import OutputPiece, cut_text, decode_line, encode_piece

TEXT_OR_BYTES = st.one_of(
    st.binary(max_size=60), st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace"))
)


@given(TEXT_OR_BYTES, st.lists(st.integers(1, 7)), st.sampled_from([None, "utf-8", "base64"]))
def test_pieces_put_together_are_the_text_of_the_whole(
    whole: bytes, sizes: list[int], encoding: str | None
) -> None:
    shown, at, end = "", 0, 0
    for size in sizes:
        end = min(len(whole), end + size)
        text, used = cut_text(whole[at:end], encoding, is_end=False)
        assert used <= end - at
        shown, at = shown + text, at + used
    text, used = cut_text(whole[at:], encoding, is_end=True)
    assert at + used == len(whole)
    assert shown + text == output_text(whole, encoding)


def test_a_character_is_never_torn() -> None:
    assert cut_text("aé".encode()[:2], "utf-8", is_end=False) == ("a", 1)
    assert cut_text("é".encode()[:1], "utf-8", is_end=True) == ("\N{REPLACEMENT CHARACTER}", 1)
    assert cut_text(b"abcd", "base64", is_end=False) == (base64.b64encode(b"abc").decode(), 3)


def test_a_piece_round_trips_and_a_last_line_stays_what_it_was() -> None:
    piece = OutputPiece("stderr", "a\nb\u2028é", 7)
    line = encode_piece(piece)
    assert line.count(b"\n") == 1
    assert decode_line(line) == piece
    last = {"script": "a", "exit": 0, "from": {"stdout": 3, "stderr": 0}}
    assert decode_line(json.dumps(last).encode()) == last


@pytest.mark.parametrize(
    "line",
    [
        b'{"stream": "stdin", "text": "", "at": 1}', b'{"stream": "stdout", "at": 1}', b'{"stream": "stdout", "text": "a"}',
        b'{"stream": "stdout", "text": "a", "at": -1}', b'{"stream": "stdout", "text": 1, "at": 1}', b"[]", b"{",
    ],
)  # fmt: skip
def test_a_malformed_line_is_refused(line: bytes) -> None:
    with pytest.raises(MessageError):
        decode_line(line)
