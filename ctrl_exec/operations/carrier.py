"""The carrier: the one process that holds a run's locks and writes its record.

Owns the life of a run from the first contact to the last word: dispatching, keeping what is heard,
asking again for what is not, finishing. It can be left and gone on with in a detached process,
which inherits locks and record by fork. Must not know who asked for the run or how it is shown.
"""

from __future__ import annotations

import os
import select

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError, StorageError
from ctrl_exec.common.process import detach
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import replace
from ctrl_exec.operations.keeper import NO_RECORD, Keeper
from ctrl_exec.operations.report import report_of
from ctrl_exec.operations.stage import Stage
from ctrl_exec.services.agent_answers import TOO_LARGE, TOO_OLD_TO_CANCEL
from ctrl_exec.services.agent_client import BROKEN
from ctrl_exec.services.progress import STREAMS
from ctrl_exec.services.pursuit import LOOK_S
from ctrl_exec.services.transport import Interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ctrl_exec.common.messages import HostResult, RunCommand
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.operations.report import RunReport
    from ctrl_exec.operations.rollout import Batch
    from ctrl_exec.services.journal import RunJournal
    from ctrl_exec.services.locks import HeldLocks
    from ctrl_exec.services.pursuit import Pursuit
    from ctrl_exec.services.records import RunRecord
    from ctrl_exec.services.targets import Target

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
ROUND_S = 60.0  # so often a detached carrier looks at its deadline
RETELL_S = 5.0  # so often an agent is told of a cancel that it has not heeded
GLANCE_S = 1.0  # so long is listened to what runs, where nobody stays to listen
SMALL_BYTES = 64 << 10
CANCELLED = "cancelled before it was started"


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
            if self._interrupt is not None:
                left_s = self._interrupt.wait_s(left_s)
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
    over from a dead carrier) nothing is ever dispatched, only asked for. With a `batch` the hosts are
    begun as the record's batches say.
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
        batch: Batch | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self._journal = journal
        self._keeper = Keeper(dispatcher, journal, locks, is_own=command is not None)
        self._targets = {target.name: target for target in targets}
        self._command = command
        self._read_timeout_s = read_timeout_s or dispatcher.config.read_timeout
        self._stage = Stage(self._keeper, batch)
        self._undispatched = set(self._targets) if command is not None and batch is None else set()
        self._unheeding: set[str] | None = None  # of a cancel: who is to be told of it (again)

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
        locks = self._keeper.locks
        return (*self._journal.fds, *(locks.fds if locks else ()))

    # carrying for somebody who waits

    def dispatch(
        self, interrupt: Interrupt | None = None, on_result: Callable[[HostResult], None] | None = None
    ) -> None:
        """Give the command to every host that has not had it, batch by batch, and keep what they say.

        Where a connection broke after the command was sent, the agent is asked at once what became of
        it. Ends early with the interrupt, or when a host has been silent for too long.
        """
        self._keeper.tell = on_result
        try:
            while self._command is not None and not _is_set(interrupt):
                if self._is_to_cancel:
                    self._obey_cancel()
                    self._attend(interrupt, within_s=self._read_timeout_s)
                if self._has_more_to_begin(interrupt):
                    self._begin(interrupt)
                elif not self._is_to_cancel:
                    break
        finally:
            self._keeper.tell = None

    @property
    def _is_to_cancel(self) -> bool:
        """Whether there is a wish to cancel that was not yet obeyed."""
        return self._unheeding is None and self._keeper.is_cancelled

    def _has_more_to_begin(self, interrupt: Interrupt | None) -> bool:
        """Whether there are hosts to be begun now; waits for the pause between batches."""
        if not self._undispatched:
            self._undispatched = self._stage.next_batch(Pause(self._watching(interrupt)))
        return bool(self._undispatched)

    def _watching(self, interrupt: Interrupt | None) -> Interrupt:
        """The interrupt, or a cancel."""
        fds = interrupt.fds if interrupt is not None else ()
        return Interrupt(fds, lambda: self._is_to_cancel or _is_set(interrupt), poll_s=LOOK_S)

    def _begin(self, interrupt: Interrupt | None) -> None:
        """Send the command to those that have not had it, and listen until they have said their last word."""
        targets = [target for name, target in self._targets.items() if name in self._undispatched]
        self._undispatched = set()
        with self._listening() as pursuit:
            beside = pursuit.beside(interrupt, lambda: self._is_to_cancel)
            for result in self._send(targets, pursuit, beside):
                # one that is asked again at once is told of when that has led to something
                self._keeper.keep(result, is_told=not result.error.startswith(BROKEN))
            while self._turn(pursuit, interrupt, self._read_timeout_s) and self._keeper.has_heard:
                pass  # who speaks is not silent
            for name in pursuit.hosts:
                self._keeper.tell_of(name)

    def _send(self, targets: list[Target], pursuit: Pursuit, interrupt: Interrupt) -> Iterator[HostResult]:
        assert self._command is not None
        interrupt = replace(interrupt, on_unsent=self._undispatched.update)
        self._keeper.note_sent(target.name for target in targets)
        has_begun = False
        try:
            for result in self.dispatcher.agents.run(
                targets,
                self._command,
                read_timeout_s=self._read_timeout_s,
                pursuit=pursuit,
                interrupt=interrupt,
            ):
                has_begun = True
                yield result
        except CtrlExecError as error:
            if not has_begun:  # our identity or registry is unusable: not a byte has left
                self._keeper.cancel([target.name for target in targets], f"not started: {error}")
            raise

    def _listening(self) -> Pursuit:
        record = self._journal.record
        return self.dispatcher.agents.pursue(
            self._keeper,
            record.reqid,
            record.script,
            record.encoding if record.encoding != "utf-8" else None,
        )

    def _turn(self, pursuit: Pursuit, interrupt: Interrupt | None, within_s: float) -> bool:
        """Listen to those who are asked again until they are final, or the time is up: whether it is."""
        self._keeper.has_heard = False
        deadline = monotonic() + within_s
        watching = self._watching(interrupt)
        while pursuit.hosts and not watching.is_set() and monotonic() < deadline:
            pursuit.turn(min(LOOK_S, max(0.0, deadline - monotonic())))
            if self._keeper.unstarted:
                self._start_or_lose()
        return bool(pursuit.hosts) and not watching.is_set()

    def _attend(self, interrupt: Interrupt | None = None, *, within_s: float) -> None:
        """Listen to the agents of all unfinished hosts that were begun, live."""
        begun = self._begun_pending()
        for name in begun - set(self._targets):
            self._keeper.lose(name, "no longer registered")
        with self._listening() as pursuit:
            for name in begun & set(self._targets):
                pursuit.add(self._targets[name])
            self._turn(pursuit, interrupt, within_s)

    def _begun_pending(self) -> set[str]:
        return set(self._journal.pending) - self._undispatched - self._stage.unbegun

    # a cancel

    def _obey_cancel(self) -> None:
        """If the run is to be cancelled: begin nothing more, and have the agents end what runs."""
        if not self._keeper.is_cancelled:
            return
        if self._unheeding is None:
            self._keeper.cancel(self._undispatched | self._stage.unbegun, CANCELLED)
            self._undispatched = set()
            self._stage.stop()
            self._unheeding = self._begun_pending()
        wanted = self._unheeding & set(self._journal.pending)
        if not wanted:
            return
        targets = [target for name, target in self._targets.items() if name in wanted]
        outcomes = list(self.dispatcher.agents.cancel(targets, self._journal.reqid))
        self._keeper.note_cancels(outcomes)
        # the others have ended, or will not by being told again
        self._unheeding = {
            each.host for each in outcomes if not each.ended and each.error != TOO_OLD_TO_CANCEL
        }

    # what had not left, and what never arrived

    def _start_or_lose(self) -> None:
        """Start the run where the interrupt came before it had left us, on agents that would know."""
        names, self._keeper.unstarted = self._keeper.unstarted, set()
        open_names = {name for name in names if self._journal.result_of(name).state == "pending"}
        startable: set[str] = set()
        if self._command is not None and open_names and not self._keeper.is_cancelled:
            asked = [self._targets[name] for name in open_names]
            heard = self.dispatcher.agents.ping(asked, self._journal.reqid)
            # only an agent that keeps a record of every run can tell that it never had this one
            startable = {found.host for found in heard if "result" in found.features}
        self._undispatched |= startable
        if self._keeper.is_cancelled:
            self._keeper.cancel(open_names, CANCELLED)
        for name in names - startable:
            self._keeper.lose(name, NO_RECORD)

    # carrying on, detached

    def carry_on(self) -> None:
        """Go on until every host is final or the deadline of runs makes the rest lost; then finish."""
        pause_s = FIRST_PAUSE_S
        wait = Pause()
        try:
            while True:
                has_failed = not self._attempt(self._go_on)
                self.close_overdue()
                if self.is_finished:
                    self.finish()
                    return
                if has_failed:
                    wait(pause_s)
                    pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        except BaseException as error:
            self.leave(f"{type(error).__name__}: {error}")
            raise

    def _go_on(self) -> None:
        self.dispatch()
        self._obey_cancel()
        if not self.is_finished and not self._undispatched:
            # a cancel that an agent has not heeded is told it again
            self._attend(within_s=RETELL_S if self._unheeding else ROUND_S)

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Do the step; what fails is said and tried again, for the scripts may be running all the same."""
        try:
            step()
        except CtrlExecError as error:
            self.dispatcher.log.error("run", reqid=self._journal.reqid, error=str(error))
            return False
        return True

    def close_overdue(self) -> None:
        """Make lost what is unfinished beyond the deadline of runs."""
        config = self.dispatcher.config
        if self.dispatcher.clock() - self._journal.record.created >= config.run_deadline:
            for name in self._journal.pending:
                self._keeper.lose(name, f"no answer within {config.run_deadline}s")

    # taken over from a dead carrier

    def attend(self, within_s: float) -> None:
        """Listen, live, to the agents of the run, of which no more is begun; obey a cancel."""
        self._end_rollout()
        deadline = monotonic() + within_s
        while not self.is_finished and (left_s := deadline - monotonic()) > 0:
            self._obey_cancel()
            self._attend(within_s=min(left_s, RETELL_S) if self._unheeding else left_s)

    def _end_rollout(self) -> None:
        """Begin no batch that the dead carrier had not begun."""
        left_out = self._stage.unbegun
        if left_out:
            begun = self._journal.record.begun
            self._keeper.cancel(left_out, f"not started: its carrier died in batch {begun}")
            self._stage.stop()

    def settle(self, within_s: float) -> None:
        """Ask every agent once what became of the run, of which no more is begun; obey a cancel."""
        record = self._journal.record
        self._end_rollout()
        self._obey_cancel()
        for name in set(self._journal.pending) - set(self._targets):
            self._keeper.lose(name, "no longer registered")
        heard = self.dispatcher.agents.result(
            [self._targets[name] for name in self._journal.pending],
            record.reqid,
            record.script,
            encoding=record.encoding,
            within_s=within_s,
            limit_bytes=SMALL_BYTES,
        )
        ended, running = [], []
        for result in heard:
            if result.is_final:
                self._keeper.keep(self._beyond_record(result))
            elif result.error == TOO_LARGE:
                ended.append(result.host)
            elif not self._keeper.hear_result(result) and result.state == "running" and not result.error:
                running.append(result.host)
        self._start_or_lose()
        self._collect(running, min(GLANCE_S, within_s))
        self._collect(ended, within_s)

    def _beyond_record(self, result: HostResult) -> HostResult:
        """The result with what of its output is not on record yet: the agent has told all of it."""
        stdout, stderr = (self._journal.received(result.host, stream).chars for stream in STREAMS)
        return replace(result, stdout=result.stdout[stdout:], stderr=result.stderr[stderr:])

    def _collect(self, names: list[str], within_s: float) -> None:
        """What there is of these hosts' output by now."""
        if names:
            with self._listening() as pursuit:
                for name in names:
                    pursuit.add(self._targets[name])
                deadline = monotonic() + within_s
                while pursuit.hosts and monotonic() < deadline:
                    pursuit.turn()

    # the end

    def record_with_output(self) -> RunRecord:
        """The record as it stands with all output there is; without it where it can't be read."""
        try:
            return self._journal.read_back()
        except StorageError as error:
            self._keeper.complain(error)
            return self._journal.record

    def finish(self, state: str = "", *, wants_output: bool = False) -> RunRecord:
        """Write the end of the run and let everything go; on a full disk the end is written later.

        Without a state it is `cancelled` where any host was, else `completed`. What is given back holds
        all output only if that is wanted.

        The record then stays unfinished on disk and is completed by recovery; what is given back is
        the end all the same.
        """
        if not state:
            states = {result.state for result in self._journal.record.results}
            state = "cancelled" if "cancelled" in states else "completed"
        completed = self.dispatcher.clock()
        record = self.record_with_output() if wants_output else self._journal.record
        try:
            self._journal.finish(state, completed)
        except StorageError as error:
            self._keeper.complain(error)
        self.close()
        return replace(record, state=state, complete=True, completed=completed)

    def give_up(self, reason: str) -> None:
        """End a run of which nothing was dispatched."""
        self._keeper.cancel(self._journal.pending, reason)
        self.finish()

    def leave(self, reason: str) -> None:
        """Let the run go unfinished; whoever asks for it takes it over."""
        if self._journal.is_open:
            self.dispatcher.log.error("run", reqid=self._journal.reqid, error=f"carrier left: {reason}")
        self.close()

    def close(self) -> None:
        """Let record and locks go for good."""
        locks = self._keeper.locks
        if locks is not None:
            self.dispatcher.log.info("lock-release", reqid=self._journal.reqid, script=locks.script)
        self.hand_over()

    def hand_over(self) -> None:
        """Close record and locks in this process; one that inherited them keeps them."""
        self._journal.close()
        if self._keeper.locks is not None:
            self._keeper.locks.close()
            self._keeper.locks = None


def _is_set(interrupt: Interrupt | None) -> bool:
    return interrupt is not None and interrupt.is_set()


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
