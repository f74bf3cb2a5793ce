"""`AGENT_SCRIPT`: a run on agents, followed to its end.

Owns how a run becomes an execution: its log, its outcome, its abort. The run has a carrier of its own,
so that it is whole also where this process dies, and can be asked for afterwards.
"""

from __future__ import annotations

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import CtrlExecError, StorageError
from ctrl_exec.common.masking import Masker
from ctrl_exec.common.names import new_reqid
from ctrl_exec.common.value import replace
from ctrl_exec.operations.follow import BEGINNING, watch
from ctrl_exec.operations.rollout import Batch
from ctrl_exec.operations.run import RunRequest, run
from ctrl_exec.services.transport import Interrupt
from ctrl_exec.tasks.execution import carriage, lifecycle
from ctrl_exec.tasks.models import ABORTED, ABORTING, FAILED, LOST, SUCCESS, TIMED_OUT, AgentScript
from ctrl_exec.tasks.people.identity import OF_A_TASK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.operations.follow import RunEvent
    from ctrl_exec.services.record_heads import RunHead
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.kinds.attempt import Attempt
    from ctrl_exec.tasks.models import Execution

_ASK_EVERY_S = 0.5
_STREAMS = {"stdout": 1, "stderr": 2}


def carry(attempt: Attempt) -> Outcome:
    """Begin the run, put what it says into the log, and tell how it ended."""
    reqid = new_reqid()
    # noted first: where this process dies between the two, recovery asks for a run that never was
    carriage.note_run(attempt.store, attempt.execution.execution_id, reqid)
    try:
        run(attempt.dispatcher, replace(attempt.caller, source_ip=OF_A_TASK), request_of(attempt, reqid))
    except CtrlExecError as error:
        attempt.say(2, f"{error}\n".encode())
        return lifecycle.Outcome(FAILED, None, str(error))
    watcher = _Watcher(attempt, reqid)
    for event in watch(attempt.dispatcher, reqid, BEGINNING, watcher.interrupt, idle_s=_ASK_EVERY_S):
        watcher.hear(event)
    outcome = outcome_of_run(attempt.dispatcher, reqid)
    if outcome is None:
        return lifecycle.Outcome(LOST, None, f"run {reqid} is not on record any more")
    if watcher.has_timed_out:
        return lifecycle.Outcome(TIMED_OUT, outcome.exit_code, f"timed out after {attempt.timeout_s:g}s")
    return outcome


def request_of(attempt: Attempt, reqid: str) -> RunRequest:
    """The run that the task asks for. Raises: InvalidInputError."""
    kind = attempt.task.kind
    assert isinstance(kind, AgentScript)
    batch = kind.batch
    return RunRequest(
        hosts=kind.hosts,
        script=kind.script,
        args=attempt.materials.arguments(kind.args),
        lock_wait_s=kind.lock_wait_s or 0,
        is_async=True,
        batch=None if batch is None else Batch(batch.size, batch.max_failures, batch.pause_s),
        secrets=attempt.materials.secrets,
        reqid=reqid,
    )


class _Watcher:
    """Puts a run's events into the log, and has it cancelled at its time or by wish."""

    def __init__(self, attempt: Attempt, reqid: str) -> None:
        self._attempt = attempt
        self._reqid = reqid
        self._deadline = None if attempt.timeout_s is None else monotonic() + attempt.timeout_s
        self._asked_at = 0.0
        self._is_cancelled = False
        self.has_timed_out = False
        # by host and stream, before a host's name comes between two pieces of one secret
        self._maskers: dict[tuple[str, str], Masker] = {}
        # never over by itself: the run is followed to its end; asked so often for the wish to end it
        self.interrupt = Interrupt((), self._look, poll_s=_ASK_EVERY_S)

    def _look(self) -> bool:
        now = monotonic()
        if self._is_cancelled or now - self._asked_at < _ASK_EVERY_S:
            return False
        self._asked_at = now
        self.has_timed_out = self._deadline is not None and now >= self._deadline
        if self.has_timed_out or self._attempt.wants_end():
            self._is_cancelled = True
            self._attempt.dispatcher.results.ask_to_cancel(self._reqid)
        return False

    def hear(self, event: RunEvent) -> None:
        """One event."""
        self._look()
        if event.kind in _STREAMS:
            place = (event.host, event.kind)
            if place not in self._maskers:
                self._maskers[place] = Masker(self._attempt.materials.secrets.values())
            self._show(*place, self._maskers[place].feed(event.text.encode("utf-8", "replace")))
        elif event.kind == "exit" and event.result is not None:
            self._let_go(event.host)
            result = event.result
            words = f" ({result.error})" if result.error else ""
            self._attempt.say(1, f"{event.host}: [{result.state}, exit {result.exit}]{words}\n".encode())

    def _let_go(self, host: str) -> None:
        for stream in _STREAMS:
            masker = self._maskers.pop((host, stream), None)
            if masker is not None:
                self._show(host, stream, masker.flush())

    def _show(self, host: str, stream: str, shown: bytes) -> None:
        lines = shown.decode("utf-8", "replace").splitlines(keepends=True)
        text = "".join(f"{host}: {line}" for line in lines)
        if text and not text.endswith("\n"):
            text += "\n"
        self._attempt.say(_STREAMS[stream], text.encode())


def outcome_of_run(dispatcher: Dispatcher, reqid: str) -> Outcome | None:
    """What a run that is over means for its execution; None while it goes on, or without a record."""
    head = dispatcher.results.head(reqid)
    return None if head is None or not head.complete else _outcome_of(head)


def outcome_of_runs(dispatcher: Dispatcher, execution: Execution) -> Outcome | None:
    """What the runs of an execution came to whose carrier died; None while one goes on, or can't be read now.

    What was aborted is cancelled here, for its carrier did not live to do it. A run without a record was
    noted and never begun, for the record comes before anything is dispatched, and only the carrier makes
    it; or it is over for longer than records are kept, and what it came to is known to nobody.
    """
    try:
        heads = [dispatcher.results.head(reqid) for reqid in execution.runs]
        for head in heads:
            if head is not None and not head.complete:
                if execution.status == ABORTING:
                    dispatcher.results.ask_to_cancel(head.reqid)
                return None
    except StorageError as error:  # of one record: it is asked for again, and the others meanwhile
        dispatcher.log.error("task-recovery", execution=execution.execution_id, error=str(error))
        return None
    if heads[-1] is not None:
        return _outcome_of(heads[-1])
    if execution.status == ABORTING:
        return lifecycle.Outcome(ABORTED, None, "aborted")
    return lifecycle.Outcome(LOST, None, lifecycle.CUT_OFF)


def _outcome_of(head: RunHead) -> Outcome:
    counts = head.counts or {}
    others = {state: count for state, count in counts.items() if state != "ok" and count}
    if not others:
        return lifecycle.Outcome(SUCCESS, 0)
    words = ", ".join(f"{count} {state}" for state, count in sorted(others.items()))
    if set(others) == {"cancelled"}:
        return lifecycle.Outcome(ABORTED, lifecycle.KILLED_EXIT, words)
    return lifecycle.Outcome(FAILED, 1, words)
