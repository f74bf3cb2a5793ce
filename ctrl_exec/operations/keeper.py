"""What is heard of a run's hosts, kept: in its record, within its budget of output, its locks let go.

Owns that nothing is lost for want of storage: what can't be written is said once and kept in memory.
Must not know how hosts are asked.
"""

from __future__ import annotations

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.value import replace
from ctrl_exec.operations.contact import Contacts
from ctrl_exec.operations.output import OutputBudget
from ctrl_exec.services.progress import STREAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ctrl_exec.common.messages import HostResult
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.journal import RunJournal
    from ctrl_exec.services.locks import HeldLocks
    from ctrl_exec.services.progress import Received
    from ctrl_exec.services.records import CancelOutcome
    from ctrl_exec.services.streams import OutputPart

# a request that was cut off may still be in the agent's queue: only after this is "unknown" the truth
MISSED_GRACE_S = 10
NO_RECORD = "the agent has no record of this run"
_CANCEL_LOOK_S = 0.2
_MANY_HOSTS = 64


class Keeper:
    """Listens to what agents say of one run.

    `is_own` tells whether this process began the run. `tell` is told of every result that is kept.
    """

    def __init__(
        self, dispatcher: Dispatcher, journal: RunJournal, locks: HeldLocks | None, *, is_own: bool
    ) -> None:
        self.journal = journal
        self.locks = locks
        self.tell: Callable[[HostResult], None] | None = None
        self.unstarted: set[str] = set()
        self.has_heard = False  # output, since somebody last set it back
        self._dispatcher = dispatcher
        self._is_own = is_own
        record = journal.record
        self._budget = OutputBudget(dispatcher.config.max_run_output, record.encoding)
        for known in record.results:  # a run that was taken over has used some of it
            self._budget.take(known)
            for stream in STREAMS:
                if chars := journal.received(known.host, stream).chars:
                    self._budget.charge(known.host, stream, chars)
        self._contacts = Contacts(dispatcher)
        # of many hosts not each one's file is read while they all begin; the next ping puts notes right
        self._minds_contacts = len(record.hosts) <= _MANY_HOSTS
        self._sent_at: dict[str, float] = {}
        self._missed_since: dict[str, float] = {}
        self._has_storage = True
        self._looked = float("-inf")
        self._is_cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody wishes the run cancelled; looked at a few times a second."""
        now = monotonic()
        if not self._is_cancelled and now - self._looked >= _CANCEL_LOOK_S:
            self._looked = now
            self._is_cancelled = self.journal.is_cancelled
        return self._is_cancelled

    def note_sent(self, names: Iterable[str]) -> None:
        """The command is given to these hosts now."""
        self._sent_at |= dict.fromkeys(names, monotonic())

    # what agents say

    def known(self, host: str, stream: str) -> Received:
        """How much of a host's output is on record."""
        return self.journal.received(host, stream)

    def hear_output(self, part: OutputPart) -> None:
        """Keep a piece of output; one of nothing says that the script runs."""
        self.has_heard |= bool(part.text)  # a stream that is taken up again begins with such a one
        known = self.journal.result_of(part.host)
        if known.is_final:
            return
        if known.state == "pending":
            self._note_running(replace(known, state="running"))
            if self._minds_contacts:
                self._contacts.note_streaming(part.host, can=True)
        if not part.text:
            return
        text, is_whole = self._budget.pass_on(part.host, part.stream, part.text)
        if text:
            try:
                self.journal.note_output(part.host, part.stream, text, part.at if is_whole else None)
            except StorageError as error:
                self.complain(error)

    def hear_result(self, result: HostResult) -> bool:
        """Keep what an agent that was asked again said; whether it need not be asked any more."""
        if result.state == "pending":
            if not self._is_missed(result):
                return False
            self.unstarted.add(result.host)
            return True
        if result.is_final:
            sent_at = self._sent_at.get(result.host)
            if sent_at is not None:  # its own is that of the last question
                result = replace(result, rtt_ms=round(1000 * (monotonic() - sent_at)))
            self.keep(result)
            return True
        if not result.error and self.journal.result_of(result.host).state == "pending":
            self._note_running(result)
        return False

    def _note_running(self, result: HostResult) -> None:
        """Keep that the agent has the run."""
        try:
            self.journal.note(result)
        except StorageError as error:
            self.complain(error)

    def _is_missed(self, result: HostResult) -> bool:
        """Whether the agent has not known the run for so long that it never will by itself."""
        if self._is_own:  # our own run: measured on a clock that nobody sets
            return monotonic() - self._missed_since.setdefault(result.host, monotonic()) >= MISSED_GRACE_S
        now = self._dispatcher.clock()
        try:
            since = self.journal.note_missed(result.host, now)
        except StorageError as error:
            self.complain(error)
            return False
        return now - since >= MISSED_GRACE_S

    # what is known

    def keep(self, result: HostResult, *, is_told: bool = True) -> None:
        """Keep a result, and tell of it."""
        kept = self._budget.end(result) if result.is_final else result
        if kept.note:
            self._contacts.note_streaming(kept.host, can=False)
            if not (kept.stdout or kept.stderr):  # nothing came at all
                kept = replace(kept, note="")
        try:
            self.journal.note(kept)
        except StorageError as error:
            self.complain(error)
        if kept.is_final and self.locks is not None:
            self.locks.release(kept.host)
        self._dispatcher.log.info(
            "run",
            reqid=self.journal.reqid,
            host=kept.host,
            script=kept.script,
            exit=kept.exit if kept.exit is not None else -1,
            state=kept.state,
            rtt=f"{kept.rtt_ms}ms",
            error=kept.error or None,
        )
        if is_told:
            self.tell_of(kept.host)

    def tell_of(self, name: str) -> None:
        """Tell what is known of a host, with all its output."""
        if self.tell is None:
            return
        try:
            result = self.journal.full_result(name)
        except StorageError as error:
            self.complain(error)
            result = self.journal.result_of(name)
        self.tell(result)

    def lose(self, name: str, reason: str) -> None:
        """Say that what became of a host will not be known any more."""
        known = self.journal.result_of(name)
        if not known.is_final:
            self.keep(replace(known, state="lost", exit=-1, error=reason))

    def cancel(self, names: Iterable[str], reason: str) -> None:
        """Say that hosts were not begun and will not be."""
        for name in names:
            known = self.journal.result_of(name)
            if not known.is_final:
                self.keep(replace(known, state="cancelled", exit=-1, error=reason))

    def note_cancels(self, outcomes: Sequence[CancelOutcome]) -> None:
        """Keep what became of a cancel."""
        try:
            self.journal.note_cancels(outcomes)
        except StorageError as error:
            self.complain(error)
        for each in outcomes:
            self._dispatcher.log.info(
                "cancel",
                reqid=self.journal.reqid,
                host=each.host,
                ended="yes" if each.ended else "no",
                error=each.error or None,
            )

    def complain(self, error: StorageError) -> None:
        """Say once that the record can't grow; the run goes on, its results are kept in memory."""
        if self._has_storage:
            self._dispatcher.log.error("run", reqid=self.journal.reqid, error=str(error))
        self._has_storage = False
