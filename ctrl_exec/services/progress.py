"""What the lines of a run's event log add to its record.

Owns the meaning of each line; one that is torn or strange is passed over:

    {"out": host, "stream": "stdout", "text": …, "at": N}   output as it came; N raw bytes of it so far
    {"result": {…}}                                          the last word on a host, or that it runs;
                                                             its output follows what was told as `out`
    {"missed": host, "at": epoch}                            the agent says it does not know the run
    {"batch": n, "hosts": […]}                               the n-th batch was begun
    {"cancel": {host: {"ended": …, "error"?: …}}}            what became of a cancel
    {"end": state, "counts": {…}}                            the record is complete

Opens no file.
"""

from __future__ import annotations

from ctrl_exec.common.errors import CtrlExecError, MessageError
from ctrl_exec.common.json_text import loads
from ctrl_exec.common.messages import HostResult, integer_of, read_object, text_of
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import replace, value
from ctrl_exec.services.records import cancels_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable
    from typing import Any

    from ctrl_exec.services.records import CancelOutcome, RunRecord

STREAMS = ("stdout", "stderr")


@value
class Received:
    """How much of one stream is on record.

    `at` raw bytes are sure, `chars` characters in all, `ahead` of them beyond those bytes: output that
    came without a count.
    """

    at: int = 0
    chars: int = 0
    ahead: int = 0

    def grown(self, text: str, at: int | None) -> Received:
        """With one more piece."""
        chars = self.chars + len(text)
        return Received(self.at, chars, self.ahead + len(text)) if at is None else Received(at, chars)


class Progress:
    """A record and what happened since it was written.

    Output is not kept here, only where it is: `spans` are the places of the beginnings of its lines.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self.results = {each.host: each for each in record.results}
        self.missed = dict(record.missed)
        self.begun = record.begun
        self.cancels = {each.host: each for each in record.cancels}
        self.places: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self.received: dict[tuple[str, str], Received] = {}
        self.spans: dict[tuple[str, str], array[int]] = {}

    @property
    def base(self) -> RunRecord:
        """The record without what the log adds."""
        return self._record

    @property
    def record(self) -> RunRecord:
        """The record as it stands, without the output that was told piece by piece."""
        return replace(
            self._record,
            results=tuple(self.results[host] for host in self._record.hosts),
            missed=dict(self.missed),
            begun=self.begun,
            cancels=tuple(self.cancels.values()),
        )

    @property
    def pending(self) -> tuple[str, ...]:
        """The hosts whose last word is still to come."""
        return tuple(host for host in self._record.hosts if not self.results[host].is_final)

    def put(self, **facts: Any) -> None:
        """Change facts of the record itself."""
        self._record = replace(self._record, **facts)

    def add_result(self, heard: HostResult) -> bool:
        """Take what was heard of a host; False for a host of no concern or one that was final."""
        known = self.results.get(heard.host)
        if known is None or known.is_final:
            return False
        self.results[heard.host] = heard
        self.missed.pop(heard.host, None)
        return True

    def add_output(self, host: str, stream: str, text: str, at: int | None) -> None:
        """Take that so much of a host's output is there: its script has been started."""
        result = self.results.get(host)
        if result is not None and result.state == "pending":
            self.results[host] = replace(result, state="running")
        known = self.received.get((host, stream)) or Received()
        self.received[host, stream] = known.grown(text, at)

    def note_result(self, heard: HostResult, end: int) -> None:
        """Keep where the line ends that gives a host's last word, or says that its script runs."""
        if heard.is_final:
            self.places[heard.host] = end
        elif is_start(heard):
            self.starts.setdefault(heard.host, end)

    def note_place(self, host: str, stream: str, start: int) -> None:
        """Keep where the line of a piece of output begins."""
        from array import array  # few runs have any output that is streamed

        self.spans.setdefault((host, stream), array("Q")).append(start)

    def note_cancels(self, outcomes: Iterable[CancelOutcome]) -> None:
        """Keep what became of a cancel; nothing follows that a host has ended."""
        for each in outcomes:
            known = self.cancels.get(each.host)
            if known is None or not known.ended:
                self.cancels[each.host] = each

    def read(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """Add the lines of a log, each with its place."""
        start = 0
        for end, line in lines:
            with suppress(ValueError, CtrlExecError, RecursionError):
                self._add(read_object(loads(line), "event"), start, end)
            start = end

    def _add(self, event: dict[str, Any], start: int, end: int) -> None:
        if "out" in event:
            piece = decode_output(event)
            known = self.results.get(piece.host)
            if known is not None and not known.is_final:
                self.add_output(piece.host, piece.stream, piece.text, piece.at)
                self.note_place(piece.host, piece.stream, start)
        elif "result" in event:
            heard = HostResult.from_json(event["result"])
            if self.add_result(heard):
                self.note_result(heard, end)
        elif "missed" in event:
            self.missed[text_of(event, "missed")] = integer_of(event, "at", 0)
        elif "batch" in event:
            self.begun = max(self.begun, integer_of(event, "batch", 0))
        elif "cancel" in event:
            self.note_cancels(cancels_of(event["cancel"]))


def is_start(heard: HostResult) -> bool:
    """Whether what was heard of a host is that its script runs, and nothing more."""
    return heard.state == "running" and not heard.error


@value
class OutputLine:
    """One piece of one host's output, as its line in the log has it."""

    host: str
    stream: str
    text: str
    at: int | None = None


def decode_output(event: dict[str, Any]) -> OutputLine:
    """The piece of output that a line tells of. Raises: MessageError."""
    stream = text_of(event, "stream")
    if stream not in STREAMS:
        raise MessageError("stream: expected stdout or stderr", field="stream")
    at = integer_of(event, "at", 0) if "at" in event else None
    return OutputLine(text_of(event, "out"), stream, text_of(event, "text"), at)


class _Gathering(Progress):
    """Keeps the output too."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__(record)
        self.texts: dict[tuple[str, str], list[str]] = {}

    def add_output(self, host: str, stream: str, text: str, at: int | None) -> None:
        """Take a piece of a host's output."""
        super().add_output(host, stream, text, at)
        self.texts.setdefault((host, stream), []).append(text)


def merge_events(record: RunRecord, lines: Iterable[bytes]) -> RunRecord:
    """The record with all that the lines of its log say, with the output."""
    gathering = _Gathering(record)
    gathering.read((0, line) for line in lines)
    return with_output(gathering.record, {key: "".join(each) for key, each in gathering.texts.items()})


def with_output(record: RunRecord, texts: dict[tuple[str, str], str]) -> RunRecord:
    """The record with the output told piece by piece before what each result holds itself."""
    if not texts:
        return record
    return replace(
        record,
        results=tuple(
            replace(
                each,
                stdout=texts.get((each.host, "stdout"), "") + each.stdout,
                stderr=texts.get((each.host, "stderr"), "") + each.stderr,
            )
            for each in record.results
        ),
    )
