"""Watching a run: what its hosts say, as it comes, from its beginning or from any place on.

Owns the events that all front ends show and their ids. Reads only the event log, or the finished
record where the log is gone: however slow a watcher is, the run and other watchers do not notice.

A watcher of a run that it starts itself begins it with `is_async` and follows it, so that its pipe or
pager holds nothing up.
"""

from __future__ import annotations

import json

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError, UnknownRunError
from ctrl_exec.common.messages import HostResult, integer_of, read_object, text_of
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import field, replace, value
from ctrl_exec.operations.carrier import Pause
from ctrl_exec.operations.status import revive, visible_head
from ctrl_exec.services.progress import decode_output, is_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.events import EventLog
    from ctrl_exec.services.record_heads import RunHead
    from ctrl_exec.services.records import RunRecord
    from ctrl_exec.services.transport import Interrupt

KINDS = ("start", "batch", "stdout", "stderr", "cancel", "exit", "end", "idle")
BEGINNING = -1
POLL_S = 0.04
_LOOK_AFTER_S = 1.0  # so often it is asked whether a silent run still has a carrier
_LONGEST_LOOK_S = 30.0
OLDER_AGENT = "older agent: its output comes at the end"


@value
class RunEvent:
    """One thing that happened in a run.

    `id` is the place in the run's log at which to go on after it: `follow(…, after=id)`. By `kind`:

    - `start`: first of all, once. `facts`: script, args, hosts, mode, created, and `notes` by host, where
      one is known that can't send its output while the script runs.
      With a `host`: its script runs, as the agent says. One that is over in a moment goes without.
    - `batch`: a batch was begun. `facts`: batch (1, 2, …), hosts.
    - `stdout`, `stderr`: `text` of `host`. A script that prints lines gives whole lines; an unfinished one
      comes after a moment. The texts of one stream put together are the whole output.
    - `cancel`: what became of a cancel. `facts`: {host: {ended, error?}}.
    - `exit`: the last word on `host`: `result`, without its output, which came before.
    - `end`: last of all, whatever `after` was; `facts`: state, counts. Its id is that of the event before.
    - `idle`: nothing happened for `idle_s`; nothing to show.
    """

    id: int
    kind: str
    host: str = ""
    text: str = ""
    result: HostResult | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """`{id, event}` with `host` and `text`, or with the exit's, or with the other facts."""
        shown: dict[str, Any] = {"id": self.id, "event": self.kind}
        if self.host:
            shown["host"] = self.host
        if self.kind in ("stdout", "stderr"):
            shown["text"] = self.text
        if self.kind == "cancel":
            shown["cancel"] = self.facts
            return shown
        if self.result is not None:
            said = self.result.as_json()
            shown |= {key: each for key, each in said.items() if key not in ("host", "stdout", "stderr")}
        return shown | self.facts


def follow(
    dispatcher: Dispatcher,
    caller: Caller,
    reqid: str,
    after: int = BEGINNING,
    interrupt: Interrupt | None = None,
    *,
    idle_s: float | None = None,
) -> Iterator[RunEvent]:
    """The events of a run after the one with that id, as they come, to its end or the interrupt.

    Whether the caller may see the run is decided before this returns. With `idle_s` silence is told
    too, that often. Errors of storage end the iteration; to go on, call again with the last id.

    Raises: InvalidNameError; DeniedError; UnknownRunError; StorageError.
    """
    head = visible_head(dispatcher, caller, reqid, "status")
    keeps_stderr = caller.via != "cli"
    return _Watch(dispatcher, head, after, Pause(interrupt), idle_s, keeps_stderr=keeps_stderr).events()


def watch(
    dispatcher: Dispatcher,
    reqid: str,
    after: int = BEGINNING,
    interrupt: Interrupt | None = None,
    *,
    idle_s: float | None = None,
) -> Iterator[RunEvent]:
    """As `follow`, for who has begun the run and was authorised to. Raises: UnknownRunError; StorageError."""
    head = dispatcher.results.head(reqid)
    if head is None:
        raise UnknownRunError(reqid)
    return _Watch(dispatcher, head, after, Pause(interrupt), idle_s).events()


class _Watch:
    """One watcher of one run."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        head: RunHead,
        after: int,
        pause: Pause,
        idle_s: float | None,
        *,
        keeps_stderr: bool = False,
    ) -> None:
        self._dispatcher = dispatcher
        self._keeps_stderr = keeps_stderr
        self._head = head
        self._after = after
        self._pause = pause
        self._idle_s = idle_s
        self._has_ended = False
        self._looked = self._heard = monotonic()
        self._look_after_s = _LOOK_AFTER_S

    def events(self) -> Iterator[RunEvent]:
        """All of them."""
        if self._after < 0:
            yield RunEvent(0, "start", facts=self._facts())
        log = self._dispatcher.results.open_log(self._head.reqid, self._after)
        if log is None:
            yield from self._from_record()
            return
        try:
            yield from self._from_log(log)
        finally:
            log.close()

    def _facts(self) -> dict[str, Any]:
        head = self._head
        facts: dict[str, Any] = {
            "reqid": head.reqid,
            "script": head.script,
            "args": list(head.args),
            "hosts": list(head.hosts),
            "mode": head.mode,
            "created": head.created,
        }
        notes = {host: OLDER_AGENT for host in head.hosts if self._is_older(host)}
        return facts | {"notes": notes} if notes else facts

    def _is_older(self, host: str) -> bool:
        """Whether the agent said of itself, when it was last asked, what it can do, and not this."""
        features = self._dispatcher.registry.contact(host).get("features")
        return isinstance(features, list) and bool(features) and "stream" not in features

    def _from_log(self, log: EventLog) -> Iterator[RunEvent]:
        while True:
            for place, line in log.lines():
                for event in _events_of(line, place):
                    self._has_ended |= event.kind == "end"
                    if event.id > self._after or self._has_ended:
                        yield event
                self._heard = monotonic()
            if self._has_ended:
                return
            if self._pause(POLL_S):
                return
            yield from self._mind_silence(log)
            if self._has_ended:
                return

    def _mind_silence(self, log: EventLog) -> Iterator[RunEvent]:
        """What there is to do while the log does not grow: no line may ever come again."""
        now = monotonic()
        if self._idle_s is not None and now - self._heard >= self._idle_s:
            self._heard = now
            yield RunEvent(log.at, "idle")
        if now - self._looked < self._look_after_s:
            return
        if self._dispatcher.results.is_carried(self._head.reqid):
            self._look_after_s = _LOOK_AFTER_S
        else:
            yield from self._mind_orphan(log)
        self._looked = monotonic()

    def _mind_orphan(self, log: EventLog) -> Iterator[RunEvent]:
        """What there is to do where the run has no carrier."""
        reqid = self._head.reqid
        head = self._dispatcher.results.head(reqid)
        if head is None:  # purged meanwhile
            self._has_ended = True
        elif not head.complete:
            # not in this process: who shows events may be slow; and less often where nobody lives long
            self._look_after_s = min(2 * self._look_after_s, _LONGEST_LOOK_S)
            revive(self._dispatcher, reqid, keeps_stderr=self._keeps_stderr)
        elif not log.has_more:  # its last line was never written
            self._has_ended = True
            yield RunEvent(log.at, "end", facts={"state": head.state, "counts": head.counts or {}})

    def _from_record(self) -> Iterator[RunEvent]:
        """A finished run whose log is gone."""
        record = self._dispatcher.results.load(self._head.reqid)
        if record is None or not record.complete:  # purged meanwhile, or its log was taken away
            return
        last = max(self._after, 0)
        for event in _events_in(record):
            if event.id > last:
                yield event
        place = max([last, *record.places.values()])
        yield RunEvent(place, "end", facts={"state": record.state, "counts": record.counts})


def _events_in(record: RunRecord) -> Iterator[RunEvent]:
    """What came, in its order; of a record without places, in the order asked."""
    places = record.places or {host: 3 * number for number, host in enumerate(record.hosts, start=1)}
    ends: dict[int, HostResult] = {places.get(each.host, 0): each for each in record.results if each.is_final}
    starts = {place: host for host, place in record.starts.items()}
    for place in sorted(ends.keys() | starts.keys()):
        if place in starts:
            yield RunEvent(place, "start", starts[place])
        if place in ends:
            yield from _of_result(ends[place], place)


def _events_of(line: bytes, place: int) -> Iterator[RunEvent]:
    """What a line of the log tells a watcher; nothing if it is strange."""
    with suppress(ValueError, CtrlExecError, RecursionError):
        event = read_object(json.loads(line), "event")
        if "out" in event:
            piece = decode_output(event)
            yield RunEvent(place, piece.stream, piece.host, piece.text)
        elif "result" in event:
            result = HostResult.from_json(event["result"])
            if result.is_final:
                yield from _of_result(result, place)
            elif is_start(result):
                yield RunEvent(place, "start", result.host)
        elif "batch" in event:
            yield RunEvent(place, "batch", facts=event)
        elif "cancel" in event:
            yield RunEvent(place, "cancel", facts=read_object(event["cancel"], "cancel"))
        elif "end" in event:
            counts = read_object(event.get("counts") or {}, "counts")
            facts = {
                "state": text_of(event, "end"),
                "counts": {key: integer_of(counts, key, 0) for key in counts},
            }
            # the place before it: there the record of a run ends whose log is gone
            yield RunEvent(place - len(line), "end", facts=facts)


def _of_result(result: HostResult, place: int) -> Iterator[RunEvent]:
    """A result's own output, then that it ended; all within the last three bytes of its line."""
    for back, stream in ((2, "stdout"), (1, "stderr")):
        text = getattr(result, stream)
        if text:
            yield RunEvent(place - back, stream, result.host, text)
    yield RunEvent(place, "exit", result.host, result=replace(result, stdout="", stderr=""))
