"""How much output of one run is kept, over all its hosts.

Owns the cut: beyond the limit each further output keeps its beginning and its end.
"""

from __future__ import annotations

import binascii

from ctrl_exec.common.value import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.messages import HostResult

KEPT_END_BYTES = 32 << 10


class _Cut:
    """A stream that came to the limit: what may be its end, and how much was dropped."""

    def __init__(self, head_bytes: int) -> None:
        self.head_left = head_bytes
        self.tail = bytearray()
        self.dropped = 0

    def add(self, content: bytes) -> bytes:
        """Take more of it; what of that is still its beginning."""
        head = content[: self.head_left]
        self.head_left -= len(head)
        self.tail += content[len(head) :]
        if len(self.tail) > 2 * KEPT_END_BYTES:
            self._trim()
        return head

    def _trim(self) -> None:
        surplus = max(0, len(self.tail) - KEPT_END_BYTES)
        self.dropped += surplus
        del self.tail[:surplus]

    def end(self) -> bytes:
        """Its end."""
        self._trim()
        return bytes(self.tail)


class OutputBudget:
    """Counts the output of a run and cuts what comes when the limit is reached.

    Output comes whole, in results (`take`), or piece by piece (`pass_on`, and `end` with the result).
    """

    def __init__(self, limit_bytes: int, encoding: str) -> None:
        self._left = limit_bytes
        self._is_base64 = encoding == "base64"
        self._cuts: dict[tuple[str, str], _Cut] = {}
        self._kept: dict[tuple[str, str], int] = {}

    def charge(self, host: str, stream: str, chars: int) -> None:
        """Count output that was kept before."""
        size = chars * 3 // 4 if self._is_base64 else chars
        self._left = max(0, self._left - size)
        self._kept[host, stream] = size

    def pass_on(self, host: str, stream: str, text: str) -> tuple[str, bool]:
        """What of a piece may be kept now, and whether that is all of it."""
        cut = self._cuts.get((host, stream))
        if cut is None:
            size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
            size = size * 3 // 4 if self._is_base64 else size
            kept = self._kept.get((host, stream), 0)
            if size <= self._left:
                self._left -= size
                self._kept[host, stream] = kept + size
                return text, True
            cut = self._cuts[host, stream] = _Cut(self._head_bytes(kept))
            self._left = max(0, self._left - 2 * KEPT_END_BYTES)
        return self._text(cut.add(self._bytes(text))), False

    def _head_bytes(self, kept: int) -> int:
        """How much more is kept of the beginning of a stream of which so much was."""
        wanted = max(0, KEPT_END_BYTES - kept)
        # base64 can be put together only at whole groups of three bytes
        return wanted - wanted % 3 if self._is_base64 else wanted

    def end(self, result: HostResult) -> HostResult:
        """The result whose output follows what was passed on: with the ends of what was cut."""
        if not self._cuts:
            return self.take(result)
        texts, dropped = {}, []
        for stream, before in zip(("stdout", "stderr"), result.truncated, strict=True):
            cut = self._cuts.pop((result.host, stream), None)
            own = getattr(result, stream)
            if cut is None:
                texts[stream], more = self._fit(own)
            else:
                head = cut.add(self._bytes(own))
                texts[stream], more = self._text(head + cut.end()), cut.dropped
            dropped.append(before + more)
        return replace(result, **texts, truncated=(dropped[0], dropped[1]))

    def _text(self, content: bytes) -> str:
        # a character that the cut went through is not shown
        return (
            binascii.b2a_base64(content, newline=False).decode("ascii")
            if self._is_base64
            else content.decode("utf-8", "ignore")
        )

    def take(self, result: HostResult) -> HostResult:
        """The result as it may be kept; `truncated` counts what was dropped here and before."""
        stdout, dropped_out = self._fit(result.stdout)
        stderr, dropped_err = self._fit(result.stderr)
        if not dropped_out and not dropped_err:
            return result
        before = result.truncated
        return replace(
            result, stdout=stdout, stderr=stderr, truncated=(before[0] + dropped_out, before[1] + dropped_err)
        )

    def _fit(self, output: str) -> tuple[str, int]:
        # no character takes more than four bytes, nor less than one: most outputs need no encoding
        if len(output) * 4 <= self._left:
            self._left -= len(output)
            return output, 0
        content = self._bytes(output)
        if len(content) <= self._left or len(content) <= 2 * KEPT_END_BYTES:
            self._left = max(0, self._left - len(content))
            return output, 0
        self._left = max(0, self._left - 2 * KEPT_END_BYTES)
        head, tail = content[:KEPT_END_BYTES], content[-KEPT_END_BYTES:]
        return self._joined(head, tail), len(content) - 2 * KEPT_END_BYTES

    def _bytes(self, output: str) -> bytes:
        if self._is_base64:
            try:
                return binascii.a2b_base64(output)
            except ValueError:  # also what is not even ASCII
                return output.encode()
        return output.encode("utf-8", "surrogatepass")

    def _joined(self, head: bytes, tail: bytes) -> str:
        if self._is_base64:
            return binascii.b2a_base64(head + tail, newline=False).decode("ascii")
        # a character that the cut went through is not shown
        return head.decode("utf-8", "ignore") + tail.decode("utf-8", "ignore")
