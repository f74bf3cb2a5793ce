"""Output on its way to a dispatcher: the answer that holds it whole, and the lines that bring it in pieces.

Owns how much of it is in memory at a time, which is a piece of each stream, however much there is.
Where the bytes come from is `kept_output`'s affair.
"""

from __future__ import annotations

from ctrl_exec.common.json_text import dumps
from ctrl_exec.common.messages import encode
from ctrl_exec.common.output_stream import STREAMS, OutputPiece, cut_text, encode_piece

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ctrl_exec_agent.kept_output import Output, Outputs

PIECE_BYTES = 49_152  # divisible by three, as base64 wants it
SMALL_BYTES = 65_536
"""So much output, of both streams together, an answer holds in one piece."""


def whole(document: dict[str, Any], outputs: Outputs) -> bytes | Iterator[bytes]:
    """The document with all output, as bytes where it is little. It closes the outputs."""
    if outputs.stdout.size() + outputs.stderr.size() <= SMALL_BYTES:
        return with_rest(document, outputs, {})
    return _in_pieces(document, outputs)


def with_rest(document: dict[str, Any], outputs: Outputs, at: dict[str, int]) -> bytes:
    """The document with the output from these offsets on. It closes the outputs."""
    texts = {}
    for stream in STREAMS:
        output = outputs.of(stream)
        raw = output.read(at.get(stream, 0), max(0, output.size() - at.get(stream, 0)))
        texts[stream] = cut_text(raw, outputs.encoding, is_end=True)[0]
    outputs.close()
    return encode(document | texts)


def _in_pieces(document: dict[str, Any], outputs: Outputs) -> Iterator[bytes]:
    try:
        yield encode(document).removesuffix(b"}")
        for stream in STREAMS:
            yield b',"%b":"' % stream.encode()
            for text in _texts(outputs.of(stream), outputs.encoding):
                yield dumps(text).encode("ascii")[1:-1]
            yield b'"'
        yield b"}"
    finally:
        outputs.close()


def _texts(output: Output, encoding: str | None) -> Iterator[str]:
    at, size = 0, output.size()
    while at < size:
        raw = output.read(at, PIECE_BYTES)
        text, used = cut_text(raw, encoding, is_end=at + len(raw) >= size or not raw)
        yield text
        if not used:
            return
        at += used


class LiveLines:
    """The pieces of both streams that have not been sent yet, as lines; `at` counts the bytes that were."""

    def __init__(self, outputs: Outputs, at: dict[str, int] | None = None) -> None:
        self._outputs = outputs
        self.at = {stream: (at or {}).get(stream, 0) for stream in STREAMS}

    def first_line(self) -> bytes:
        """The line that says that the script runs, which may be silent for long: a piece of nothing."""
        return encode_piece(OutputPiece("stdout", "", self.at["stdout"]))

    def next_lines(self) -> bytes:
        """Lines of what may be shown and was not yet, at most one of each stream; empty without any."""
        lines = b""
        for stream in STREAMS:
            ready = self._outputs.of(stream).settled() - self.at[stream]
            if ready <= 0:
                continue
            raw = self._outputs.of(stream).read(self.at[stream], min(ready, PIECE_BYTES))
            text, used = cut_text(raw, self._outputs.encoding, is_end=False)
            if used:
                self.at[stream] += used
                lines += encode_piece(OutputPiece(stream, text, self.at[stream]))
        return lines

    def is_rest_small(self) -> bool:
        """Whether what is left fits into the last line."""
        left = sum(max(0, self._outputs.of(stream).size() - self.at[stream]) for stream in STREAMS)
        return left <= SMALL_BYTES

    def last_line(self, document: dict[str, Any], *, has_sent: bool) -> bytes:
        """The result, with the rest of the output; `from` says where that begins. It closes the outputs."""
        begins = {"from": dict(self.at)} if has_sent else {}
        return with_rest(document | begins, self._outputs, self.at) + b"\n"
