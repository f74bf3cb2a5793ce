"""One run of an emulated agent: what it has printed by when, how it ends, what its record says.

Output is computed, never kept: a run that prints a gigabyte costs no memory. It begins with the
agent's `stdout` and `stdout_bytes` times `x`; then come `lines` lines of fixed width, one each
`line_every_s` seconds. Nothing here touches a socket.
"""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any

from ctrl_exec.common.output_stream import cut_text

if TYPE_CHECKING:
    from tests.support.emulator import Agent, Connection

STREAMS = ("stdout", "stderr")
CANCEL_PATIENCE_S = 6.5
_SECONDS_OF_DAY = "%Y-%m-%dT%H:%M:%SZ"


def line_of(number: int, printed_at: float, *, is_stamped: bool, width: int = 0) -> bytes:
    """The line of that number (from 1), by default 14 bytes; stamped with the epoch time it was printed at."""
    text = f"line {number:08d}" + (f" {printed_at:017.6f}" if is_stamped else "")
    return text.encode().ljust(max(0, width - 1), b".") + b"\n"


class EmulatedRun:
    """A run from its order to its record."""

    def __init__(self, agent: Agent, body: dict[str, Any]) -> None:
        self.agent = agent
        self.reqid, self.script = body["reqid"], body["script"]
        self.is_base64 = body.get("encoding") == "base64" and "base64" in agent.features and not agent.older
        self.begun_at, self._begun_epoch = time.monotonic(), time.time()
        self.started = _iso()
        self.waiting: list[Connection] = []
        self._cancelled_at: float | None = None
        self._fixed = agent.stdout.encode()
        self._width = len(self._line(1))

    # -- time -------------------------------------------------------------------------------------

    def _natural_end(self) -> float:
        agent = self.agent
        return self.begun_at + max(agent.delay_s, agent.lines * agent.line_every_s)

    def ends_at(self) -> float:
        """When it is over, as far as is known now (monotonic)."""
        natural = self._natural_end()
        if self._cancelled_at is None or self._cancelled_at >= natural:
            return natural
        return min(natural, self._cancelled_at + self.agent.cancel_takes_s)

    def over_at(self) -> float:
        """When it is over for whoever waits: at its end, or when its agent's process is killed."""
        lost_at = self.begun_at + self.agent.lost_after_s
        return min(lost_at, self.ends_at()) if self.agent.lost_after_s else self.ends_at()

    def changes_at(self, now: float) -> float:
        """When it next prints something or ends."""
        every = self.agent.line_every_s
        if every <= 0:
            return self.over_at()
        next_line = self.begun_at + (int((now - self.begun_at) / every + 1e-9) + 1) * every
        return min(next_line, self.over_at())

    def is_over(self, now: float) -> bool:
        """Whether it has ended, or its agent's process has."""
        return now >= self.ends_at() or self.is_lost(now)

    def is_lost(self, now: float) -> bool:
        """Whether its agent's process was killed during it."""
        lost_at = self.begun_at + self.agent.lost_after_s
        return bool(self.agent.lost_after_s) and lost_at < self.ends_at() and now >= lost_at

    def is_cancelled(self) -> bool:
        """Whether it was cancelled before its end."""
        return self._cancelled_at is not None and self._cancelled_at < self._natural_end()

    def cancel(self, now: float) -> float:
        """Cancel it; when the answer is due (monotonic)."""
        if self._cancelled_at is None:
            self._cancelled_at = now
        return max(now, min(self.ends_at(), now + CANCEL_PATIENCE_S))

    # -- output -----------------------------------------------------------------------------------

    def size(self, stream: str, now: float) -> int:
        """How many bytes it has printed by then."""
        if stream == "stderr":
            return len(self.agent.stderr.encode())
        last = min(now, self.ends_at())
        if self.is_lost(now):
            last = min(last, self.begun_at + self.agent.lost_after_s)
        every, printed = self.agent.line_every_s, self.agent.lines
        if every > 0:
            printed = min(printed, int((last - self.begun_at) / every + 1e-9))
        return len(self._fixed) + self.agent.stdout_bytes + printed * self._width

    def read(self, stream: str, start: int, end: int) -> bytes:
        """Those bytes of what it prints."""
        if stream == "stderr":
            return self.agent.stderr.encode()[start:end]
        found = bytearray(self._fixed[start:end])
        at = start + len(found)
        filler_ends = len(self._fixed) + self.agent.stdout_bytes
        if at < end and at < filler_ends:
            found += b"x" * (min(end, filler_ends) - at)
            at = start + len(found)
        while at < end:
            number, skip = divmod(at - filler_ends, self._width)
            found += self._line(number + 1)[skip : skip + end - at]
            at = start + len(found)
        return bytes(found)

    def _line(self, number: int) -> bytes:
        printed_at = self._begun_epoch + number * self.agent.line_every_s
        return line_of(number, printed_at, is_stamped=self.agent.stamped, width=self.agent.line_bytes)

    # -- documents --------------------------------------------------------------------------------

    def answer(self, now: float, at: dict[str, int] | None = None) -> dict[str, Any]:
        """Exit code and output, from these offsets on, as a plain answer holds them."""
        shown: dict[str, Any] = {"exit": self.agent.exit}
        for stream in STREAMS:
            start = (at or {}).get(stream, 0)
            raw = self.read(stream, start, max(start, self.size(stream, now)))
            shown[stream] = (
                base64.b64encode(raw).decode() if self.is_base64 else raw.decode("utf-8", "replace")
            )
        if self.is_base64:
            shown["encoding"] = "base64"
        if self.agent.truncated:
            shown["truncated"] = self.agent.truncated
        if self.is_cancelled():
            shown |= {"exit": 126, "error": "cancelled"}
        return shown

    def piece(self, stream: str, at: int, now: float, limit_bytes: int = 65536) -> tuple[str, int]:
        """The next text of the stream from the offset on, and how many bytes that is."""
        end = min(self.size(stream, now), at + limit_bytes)
        return cut_text(self.read(stream, at, end), "base64" if self.is_base64 else None, is_end=False)

    def record(self, now: float, at: dict[str, int] | None = None) -> dict[str, Any]:
        """The spool record as `/result` shows it."""
        about = {"reqid": self.reqid, "script": self.script, "owner": "main", "started": self.started}
        if not self.is_over(now):
            return about | {"status": "running"}
        answer = self.answer(now, at)
        if self.is_lost(now):
            return about | {"status": "lost", "stdout": answer["stdout"], "stderr": answer["stderr"]}
        return about | {"status": "done", "finished": _iso()} | answer


def _iso() -> str:
    return time.strftime(_SECONDS_OF_DAY, time.gmtime())
