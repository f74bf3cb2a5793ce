"""How much output of one run is kept, over all its hosts.

Owns the cut: beyond the limit each further output keeps its beginning and its end.
"""

from __future__ import annotations

import base64

from ctrl_exec.common.value import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.messages import HostResult

KEPT_END_BYTES = 32 << 10


class OutputBudget:
    """Counts the output of a run and cuts what comes when the limit is reached."""

    def __init__(self, limit_bytes: int, encoding: str) -> None:
        self._left = limit_bytes
        self._is_base64 = encoding == "base64"

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
                return base64.b64decode(output)
            except ValueError:  # also what is not even ASCII
                return output.encode()
        return output.encode("utf-8", "surrogatepass")

    def _joined(self, head: bytes, tail: bytes) -> str:
        if self._is_base64:
            return base64.b64encode(head + tail).decode("ascii")
        # a character that the cut went through is not shown
        return head.decode("utf-8", "ignore") + tail.decode("utf-8", "ignore")
