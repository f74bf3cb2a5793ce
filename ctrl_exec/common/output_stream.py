"""Live output on the agent's wire: the lines of a streamed answer (NDJSON), written and read.

Owns the form of `{"stream", "text", "at"}` and where a piece of raw output may be cut, so that the
pieces put together are what the whole would have been. Knows no files, no sockets, no processes.
"""

from __future__ import annotations

from binascii import b2a_base64
from codecs import utf_8_decode

from ctrl_exec.common.errors import MessageError
from ctrl_exec.common.json_text import encoder
from ctrl_exec.common.messages import integer_of, parse_object, text_of
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONTENT_TYPE = "application/x-ndjson"
STREAMS = ("stdout", "stderr")
_BASE64_BYTES = 3
_encoded = encoder(separators=(",", ":"))


@value
class OutputPiece:
    """A piece of one stream of a run: its text, and how many raw bytes were sent so far, with it."""

    stream: str
    text: str
    at: int


def cut_text(raw: bytes, encoding: str | None, *, is_end: bool) -> tuple[str, int]:
    """The text of as much of the bytes as may be sent by itself, and how many bytes that is.

    UTF-8 is cut between characters, base64 between groups of three bytes. With `is_end` nothing is
    held back. The texts of all pieces put together are the text of the whole.
    """
    if encoding == "base64":
        size = len(raw) if is_end else len(raw) - len(raw) % _BASE64_BYTES
        return b2a_base64(raw[:size], newline=False).decode("ascii"), size
    return utf_8_decode(raw, "replace", is_end)


def encode_piece(piece: OutputPiece) -> bytes:
    """The line of the piece."""
    shown = {"stream": piece.stream, "text": piece.text, "at": piece.at}
    return _encoded(shown).encode("ascii") + b"\n"


def decode_line(line: bytes) -> OutputPiece | dict[str, Any]:
    """A piece of output, or the last line of a streamed answer as it came.

    Raises: MessageError.
    """
    found = parse_object(line, "line")
    if "stream" not in found:
        return found
    stream, at = text_of(found, "stream"), integer_of(found, "at", -1)
    if stream not in STREAMS:
        raise MessageError("stream: expected stdout or stderr", field="stream")
    if at < 0:
        raise MessageError("at: expected a count of bytes", field="at")
    return OutputPiece(stream, text_of(found, "text"), at)
