"""Live output of agents: the bytes of a streamed answer turned into pieces of output and a result.

Owns what is held back of one host's stream: a line of the wire that is not whole, and, for a moment, a
line of the script that is not. What an agent says wrongly is that host's result. Must not know how
the bytes came.
"""

from __future__ import annotations

import time

from ctrl_exec.common.errors import MessageError
from ctrl_exec.common.messages import HostResult, integer_of, read_object
from ctrl_exec.common.output_stream import STREAMS, OutputPiece, decode_line
from ctrl_exec.common.value import replace, value
from ctrl_exec.services import agent_answers as answers
from ctrl_exec.services.progress import Received

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ctrl_exec.services.agent_answers import Reply
    from ctrl_exec.services.transport import Answer

LINE_LIMIT_BYTES = 8 << 20  # of the wire; agents send some 64 KiB of output in one
HOLD_S = 0.1  # an unfinished line of the script is held back for so long
_HOLD_CHARS = 1 << 16
CAME_LATE = "older agent: its output came at the end"
_REPLACED = "\N{REPLACEMENT CHARACTER}"


@value
class OutputPart:
    """A piece of one host's output in the encoding of the run.

    `at` says how many raw bytes of that stream there are with it: where to go on after a break. One
    without text says only that the script runs.
    """

    host: str
    stream: str
    text: str
    at: int


class Reading:
    """The stream of one host of a run, over as many connections as it takes."""

    def __init__(
        self, host: str, encoding: str | None, known: Callable[[str, str], Received] | None = None
    ) -> None:
        """`known` tells, by host and stream, what is on record already."""
        self.host = host
        self.has_come = False  # whether anything has, on this connection
        self._encoding = encoding
        on_record = {stream: known(host, stream) if known else Received() for stream in STREAMS}
        self._at = {stream: on_record[stream].at for stream in STREAMS}
        self._ahead = {stream: on_record[stream].ahead for stream in STREAMS}
        self._chars = {stream: on_record[stream].chars for stream in STREAMS}
        self._held = dict.fromkeys(STREAMS, "")
        self._held_since = dict.fromkeys(STREAMS, 0.0)
        self._buffer = bytearray()
        self._last: dict[str, Any] | None = None
        self._is_plain = False  # whether the answer was none that streams
        self._fault = ""

    @property
    def offsets(self) -> dict[str, int]:
        """How many raw bytes of each stream have come, held back or not."""
        return dict(self._at)

    def begin(self) -> None:
        """A new connection: what was not whole on the last one comes again."""
        self.has_come = False
        self._buffer.clear()
        self._last = None
        self._is_plain = False
        self._fault = ""

    @property
    def is_holding(self) -> bool:
        """Whether an unfinished line is held back."""
        return any(self._held.values())

    def feed(self, chunk: bytes) -> Iterator[OutputPart]:
        """Take bytes of the answer; what can be told of the output."""
        self.has_come = True
        if self._fault:
            return
        unseen = len(self._buffer)  # a line that drips is not searched anew with each drop
        self._buffer += chunk
        while (end := self._buffer.find(b"\n", unseen)) >= 0:
            unseen = 0
            line = bytes(memoryview(self._buffer)[: end + 1])
            del self._buffer[: end + 1]
            try:
                yield from self._take(line)
            except MessageError as error:
                self._fault = f"invalid answer: {error}"
                self._buffer.clear()
                return
        if len(self._buffer) > LINE_LIMIT_BYTES:
            self._fault = "answer too large"
            self._buffer.clear()

    def _take(self, line: bytes) -> Iterator[OutputPart]:
        if self._last is not None:
            raise MessageError("a line after the last one", field="line")
        found = decode_line(line)
        if not isinstance(found, OutputPiece):
            self._last = found
            return
        if found.at <= self._at[found.stream]:  # told before
            if not found.text:  # the script runs, and is silent so far
                yield OutputPart(self.host, found.stream, "", self._at[found.stream])
            return
        if self._encoding == "base64" and len(found.text) % 4:
            raise MessageError("text: base64 that cannot be put together", field="text")
        self._at[found.stream] = found.at
        yield from self._release(replace(found, text=self._beyond(found.stream, found.text)))

    def _beyond(self, stream: str, text: str) -> str:
        """The text without what is on record already, of which no count of bytes was known."""
        ahead = self._ahead[stream]
        self._ahead[stream] = max(0, ahead - len(text))
        beyond = answers.without_halves(text[ahead:])
        self._chars[stream] += len(beyond)
        return beyond

    def _release(self, piece: OutputPiece) -> Iterator[OutputPart]:
        stream, text = piece.stream, self._held[piece.stream] + piece.text
        whole = len(text) if self._encoding == "base64" else text.rfind("\n") + 1
        rest = text[whole:]
        # of a replaced character it is not known how many bytes it was
        if len(rest) > _HOLD_CHARS or _REPLACED in rest:
            whole, rest = len(text), ""
        if rest and not (self._held[stream] and whole == 0):
            self._held_since[stream] = time.monotonic()
        self._held[stream] = rest
        if whole:
            yield OutputPart(self.host, stream, text[:whole], piece.at - len(rest.encode("utf-8", "replace")))

    def overdue(self, now: float) -> Iterator[OutputPart]:
        """Unfinished lines that were held back long enough."""
        for stream in STREAMS:
            if self._held[stream] and now - self._held_since[stream] >= HOLD_S:
                yield from self._let_go(stream)

    def _let_go(self, stream: str) -> Iterator[OutputPart]:
        text, self._held[stream] = self._held[stream], ""
        if text:
            yield OutputPart(self.host, stream, text, self._at[stream])

    def finish(self, answer: Answer) -> tuple[list[OutputPart], Reply]:
        """The answer is over: what was held back, and the reply with the last line as its document."""
        rest = [part for stream in STREAMS for part in self._let_go(stream)]
        if answer.failure is not None or answer.status != 200 or answer.body:
            # a stream that was over in one line may come as a body, too
            self._is_plain = answer.status == 200 and not answer.body.endswith(b"\n")
            return rest, answers.read_reply(self.host, answer)
        reply = answers.stream_reply(self.host, answer, self._last)
        if self._fault:
            return rest, replace(reply, state="failed", document=None, error=answers.shown(self._fault))
        return rest, reply

    def remainder(self, result: HostResult, document: dict[str, Any] | None) -> HostResult:
        """The result with what of its output did not come piece by piece, and a note if none could."""
        if not result.is_final or document is None:
            return result
        try:
            given = read_object(document.get("from") or {}, "from")
            texts = {stream: self._rest(result, stream, integer_of(given, stream, 0)) for stream in STREAMS}
        except MessageError as error:
            return replace(
                result, state="failed", exit=-1, stdout="", stderr="", error=f"invalid answer: {error}"
            )
        # a refusal is plain, too, but holds no output
        is_late = self._is_plain and any(stream in document for stream in STREAMS)
        return replace(result, **texts, note=CAME_LATE if is_late else result.note)

    def _rest(self, result: HostResult, stream: str, at: int) -> str:
        text: str = getattr(result, stream)
        if at and at == self._at[stream]:
            return self._beyond(stream, text)
        if at:
            raise MessageError(f"from: {stream} does not follow what came", field="from")
        return text[self._chars[stream] :]  # all of it: an agent that does not stream has told it again
