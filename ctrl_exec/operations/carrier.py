"""The carrier: the one process that holds a run's locks and writes its record.

Owns the life of a run from the first contact to the last word: dispatching, keeping what is heard,
asking again for what is not, finishing. It can be left and gone on with in a detached process,
which inherits locks and record by fork. Must not know who asked for the run or how it is shown.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError, StorageError
from ctrl_exec.common.process import detach
from ctrl_exec.common.value import replace
from ctrl_exec.operations.output import OutputBudget
from ctrl_exec.operations.report import report_of
from ctrl_exec.services.progress import STREAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ctrl_exec.common.messages import HostResult, RunCommand
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.operations.report import RunReport
    from ctrl_exec.services.journal import RunJournal
    from ctrl_exec.services.locks import HeldLocks
    from ctrl_exec.services.records import RunRecord
    from ctrl_exec.services.targets import Target
    from ctrl_exec.services.transport import Interrupt

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# a request that was cut off may still be in the agent's queue: only after this is "unknown" the truth
MISSED_GRACE_S = 10
BROKEN = "the connection broke before the answer came"


class Pause:
    """Waits, and says whether the interrupt came meanwhile."""

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self._interrupt = interrupt

    def __call__(self, seconds: float) -> bool:
        deadline = monotonic() + seconds
        watched = set(self._interrupt.fds) if self._interrupt else set()
        while True:
            if self._interrupt is not None and self._interrupt.is_set():
                return True
            left_s = deadline - monotonic()
            if left_s <= 0:
                return False
            # a descriptor that is readable for another reason would keep us spinning
            watched -= _readable(watched, left_s)


def _readable(fds: Iterable[int], within_s: float) -> set[int]:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN | select.POLLRDHUP)
    return {fd for fd, _ in poller.poll(max(1, int(within_s * 1000)))}


class Carrier:
    """Carries one run in this process.

    `targets` are the hosts that can still be reached by the registry. Without a `command` (taken
    over from a dead carrier) nothing is ever dispatched, only asked for.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        journal: RunJournal,
        targets: Sequence[Target],
        *,
        locks: HeldLocks | None = None,
        command: RunCommand | None = None,
        read_timeout_s: float | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self._journal = journal
        self._targets = {target.name: target for target in targets}
        self._locks = locks
        self._command = command
        self._read_timeout_s = read_timeout_s or dispatcher.config.read_timeout
        self._budget = OutputBudget(dispatcher.config.max_run_output, journal.record.encoding)
        for known in journal.record.results:  # a run that was taken over has used some of it
            self._budget.take(known)
        self._undispatched = set(self._targets) if command is not None else set()
        self._missed_since: dict[str, float] = {}
        self._has_storage = True

    @property
    def record(self) -> RunRecord:
        """The record as it stands."""
        return self._journal.record

    @property
    def is_finished(self) -> bool:
        """Whether every host has said its last word."""
        return not self._journal.pending

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that a detached carrier goes on with."""
        return (*self._journal.fds, *(self._locks.fds if self._locks else ()))

    def dispatch(
        self, interrupt: Interrupt | None = None, on_result: Callable[[HostResult], None] | None = None
    ) -> None:
        """Give the command to every host that has not had it, and keep the answers as they come.

        Where a connection broke after the command was sent, the agent is asked once what became of it.
        """
        if self._command is None or not self._undispatched:
            return
        targets = [target for name, target in self._targets.items() if name in self._undispatched]
        self._undispatched = set()
        tell = on_result or (lambda _: None)
        broken = []
        for result in self._send(targets, interrupt):
            kept = self._keep(_still_open(result))
            if kept.error.startswith(BROKEN):
                broken.append(kept.host)
            else:
                tell(kept)
        if broken and (interrupt is None or not interrupt.is_set()):
            self.ask(broken, within_s=self._read_timeout_s)
        for name in broken:
            tell(self._journal.result_of(name))

    def _send(self, targets: list[Target], interrupt: Interrupt | None) -> Iterator[HostResult]:
        assert self._command is not None
        if interrupt is not None:
            interrupt = replace(interrupt, on_unsent=self._undispatched.update)
        has_begun = False
        try:
            for result in self.dispatcher.agents.run(
                targets, self._command, read_timeout_s=self._read_timeout_s, interrupt=interrupt
            ):
                has_begun = True
                yield result
        except CtrlExecError as error:
            if not has_begun:  # our identity or registry is unusable: not a byte has left
                self._cancel([target.name for target in targets], f"not started: {error}")
            raise

    def ask(self, names: Iterable[str] | None = None, *, within_s: float | None = None) -> None:
        """Ask the agents of unfinished hosts what became of the run, once."""
        wanted = set(self._journal.pending if names is None else names)
        targets = [target for name, target in self._targets.items() if name in wanted]
        record = self._journal.record
        heard = self.dispatcher.agents.result(
            targets, record.reqid, record.script, encoding=record.encoding, within_s=within_s
        )
        unstarted = []
        for result in heard:
            if result.state == "pending":
                if self._is_missed(result):
                    unstarted.append(result.host)
            elif result.is_final:
                self._keep(result)
            elif not result.error and self._journal.result_of(result.host).state == "pending":
                self._note_running(result)
        self._start_or_lose(unstarted)
        for name in wanted - set(self._targets):
            self._lose(name, "no longer registered")

    def _note_running(self, result: HostResult) -> None:
        """Keep that the agent has the run, of which we did not hear when the interrupt came."""
        try:
            self._journal.note(result)
        except StorageError as error:
            self._complain(error)

    def _is_missed(self, result: HostResult) -> bool:
        """Whether the agent has not known the run for so long that it never will by itself."""
        if self._command is not None:  # our own run: measured on a clock that nobody sets
            return monotonic() - self._missed_since.setdefault(result.host, monotonic()) >= MISSED_GRACE_S
        now = self.dispatcher.clock()
        try:
            since = self._journal.note_missed(result.host, now)
        except StorageError as error:
            self._complain(error)
            return False
        return now - since >= MISSED_GRACE_S

    def _start_or_lose(self, names: list[str]) -> None:
        """Start the run where the interrupt came before it had left us, on agents that would know."""
        open_names = {name for name in names if self._journal.result_of(name).state == "pending"}
        startable: set[str] = set()
        if self._command is not None and open_names:
            asked = [self._targets[name] for name in open_names]
            heard = self.dispatcher.agents.ping(asked, self._journal.reqid)
            # only an agent that keeps a record of every run can tell that it never had this one
            startable = {found.host for found in heard if "result" in found.features}
        self._undispatched |= startable
        for name in names:
            if name not in startable:
                self._lose(name, "the agent has no record of this run")

    def _lose(self, name: str, reason: str) -> None:
        known = self._journal.result_of(name)
        if not known.is_final:
            self._keep(replace(known, state="lost", exit=-1, error=reason))

    def _beyond_record(self, result: HostResult) -> HostResult:
        """The result with what of its output is not on record yet: the agent has told all of it again."""
        stdout, stderr = (self._journal.received(result.host, stream).chars for stream in STREAMS)
        return replace(result, stdout=result.stdout[stdout:], stderr=result.stderr[stderr:])

    def _keep(self, result: HostResult) -> HostResult:
        kept = self._budget.take(self._beyond_record(result))
        try:
            self._journal.note(kept)
        except StorageError as error:
            self._complain(error)
        if kept.is_final and self._locks is not None:
            self._locks.release(kept.host)
        self.dispatcher.log.info(
            "run",
            reqid=self._journal.reqid,
            host=kept.host,
            script=kept.script,
            exit=kept.exit if kept.exit is not None else -1,
            state=kept.state,
            rtt=f"{kept.rtt_ms}ms",
            error=kept.error or None,
        )
        return kept

    def _complain(self, error: StorageError) -> None:
        """Say once that the record can't grow; the run goes on, its results are kept in memory."""
        if self._has_storage:
            self.dispatcher.log.error("run", reqid=self._journal.reqid, error=str(error))
        self._has_storage = False

    def carry_on(self) -> None:
        """Go on until every host is final or the deadline of runs makes the rest lost; then finish."""
        pause_s = FIRST_PAUSE_S
        wait = Pause()
        try:
            while True:
                self._attempt(self.dispatch)
                if self._is_overdue():
                    self._lose_rest()
                if self.is_finished:
                    self.finish()
                    return
                wait(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                self._attempt(self.ask)
        except BaseException as error:
            self.leave(f"{type(error).__name__}: {error}")
            raise

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do the step; what fails is said and tried again, for the scripts may be running all the same."""
        try:
            step()
        except CtrlExecError as error:
            self.dispatcher.log.error("run", reqid=self._journal.reqid, error=str(error))

    def _is_overdue(self) -> bool:
        config = self.dispatcher.config
        return self.dispatcher.clock() - self._journal.record.created >= config.run_deadline

    def _lose_rest(self) -> None:
        for name in self._journal.pending:
            self._lose(name, f"no answer within {self.dispatcher.config.run_deadline}s")

    def close_overdue(self) -> None:
        """Make lost what is unfinished beyond the deadline of runs."""
        if self._is_overdue():
            self._lose_rest()

    def record_with_output(self) -> RunRecord:
        """The record as it stands with all output there is; without it where it can't be read."""
        try:
            return self._journal.read_back()
        except StorageError as error:
            self._complain(error)
            return self._journal.record

    def finish(self, state: str = "", *, wants_output: bool = False) -> RunRecord:
        """Write the end of the run and let everything go; on a full disk the end is written later.

        Without a state it is `completed`, or `cancelled` where no host was started. What is given back
        holds all output only if that is wanted.

        The record then stays unfinished on disk and is completed by recovery; what is given back is
        the end all the same.
        """
        if not state:
            states = {result.state for result in self._journal.record.results}
            state = "cancelled" if states == {"cancelled"} else "completed"
        completed = self.dispatcher.clock()
        record = self.record_with_output() if wants_output else self._journal.record
        try:
            self._journal.finish(state, completed)
        except StorageError as error:
            self._complain(error)
        self.close()
        return replace(record, state=state, complete=True, completed=completed)

    def give_up(self, reason: str) -> None:
        """End a run of which nothing was dispatched."""
        self._cancel(self._journal.pending, reason)
        self.finish()

    def _cancel(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self._keep(replace(self._journal.result_of(name), state="cancelled", exit=-1, error=reason))

    def leave(self, reason: str) -> None:
        """Let the run go unfinished; whoever asks for it takes it over."""
        if self._journal.is_open:
            self.dispatcher.log.error("run", reqid=self._journal.reqid, error=f"carrier left: {reason}")
        self.close()

    def close(self) -> None:
        """Let record and locks go for good."""
        if self._locks is not None:
            self.dispatcher.log.info("lock-release", reqid=self._journal.reqid, script=self._locks.script)
        self.hand_over()

    def hand_over(self) -> None:
        """Close record and locks in this process; one that inherited them keeps them."""
        self._journal.close()
        if self._locks is not None:
            self._locks.close()
            self._locks = None


def _still_open(result: HostResult) -> HostResult:
    """A connection that broke after the command was sent says nothing of the script."""
    if result.state != "lost":
        return result
    return replace(result, state="running", error=f"{BROKEN} ({result.error})")


def detach_carrier(carrier: Carrier, *, keeps_stderr: bool) -> RunReport:
    """Go on with the run in a detached process, and let it go in this one; gives what is known.

    The other process keeps no descriptor but those of the run (a client would wait for the end of a
    connection that it holds), and standard error only where the log goes there.

    Raises: ProgramError if no process can be made; the run is then still carried here.
    """
    report = report_of(carrier.record_with_output())
    dispatcher = carrier.dispatcher
    keep_stderr = keeps_stderr and dispatcher.config.log_target == "stderr"
    kept = {0, 1, 2, *carrier.fds}

    # closed here, for there it would be a number without its socket: the next line opens another
    dispatcher.log.close()
    detach(carrier.carry_on, close=_open_fds() - kept, keep_stderr=keep_stderr)
    carrier.hand_over()
    return report


def _open_fds() -> set[int]:
    with suppress(OSError):
        return {int(name) for name in os.listdir("/proc/self/fd")}
    return set()
