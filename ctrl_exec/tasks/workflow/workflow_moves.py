"""One move of a workflow, within its transaction: what became of steps, what begins, what is ended.

Owns the steps while they are moved, and the lines that its log gets of it. Decides neither when a move
is made nor what it means for others.
"""

from __future__ import annotations

from datetime import UTC, datetime

from ctrl_exec.common import files as disk
from ctrl_exec.common.clock import iso_z
from ctrl_exec.common.errors import (
    ConflictError,
    CtrlExecError,
    DeniedError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from ctrl_exec.common.hook import INSUFFICIENT_PRIVILEGE
from ctrl_exec.common.masking import masked
from ctrl_exec.common.value import replace
from ctrl_exec.tasks.definitions import find_task
from ctrl_exec.tasks.execution import carriage, lifecycle
from ctrl_exec.tasks.execution.executions import Start, find_execution, request_execution
from ctrl_exec.tasks.kinds.workflow import cut_short, is_stopped, next_turn, outcome_of
from ctrl_exec.tasks.models import (
    ABORTED,
    ABORTING,
    EXECUTOR,
    FAILED,
    LOST,
    OPEN_STATUSES,
    PENDING,
    RUNNING,
    SKIPPED,
    SUCCESS,
    TIMED_OUT,
    UNIT_SECONDS,
    Execution,
)
from ctrl_exec.tasks.parameters import complete, secret_names
from ctrl_exec.tasks.people.rights import starter_of
from ctrl_exec.tasks.workflow.workflow_steps import StepState, after, save_step, title_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ctrl_exec.common.log import Log
    from ctrl_exec.tasks.execution.carriage import ExecutionFiles
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.models import Step
    from ctrl_exec.tasks.store import Store
    from ctrl_exec.tasks.workflow.workflow_steps import Begun

_LOG_MODE = 0o640
_ENDED = {ABORTED: "aborted", TIMED_OUT: "timed out"}


class Moves:
    """The moves of one workflow; nothing is kept before `save`."""

    def __init__(self, store: Store, execution: Execution, begun: Begun) -> None:
        self._store = store
        self._execution = execution
        self._begun = begun
        self._ending = begun.ending
        self._steps = list(begun.steps)
        self._changed: set[int] = set()
        self._lines: list[str] = []
        self._now_ns = store.clock_ns()
        if all(each.status == PENDING for each in self._steps):
            self._say(f"workflow of {len(self._steps)} steps, {begun.workflow.mode}")

    def _statuses(self) -> list[str]:
        return [each.status for each in self._steps]

    def _change(self, place: int, **changes: Any) -> None:
        self._steps[place] = replace(self._steps[place], **changes)
        self._changed.add(place)

    def _say(self, text: str) -> None:
        at = datetime.fromtimestamp(self._now_ns // lifecycle.NS, UTC)
        # a name or a reason of several lines must not pass for lines of ours
        self._lines.append(f"{iso_z(at)} {' '.join(text.split())}\n")

    def _end_step(self, place: int, status: str, reason: str | None = None) -> None:
        self._change(place, status=status, reason=reason)
        self._say(self._word(place))

    def _title(self, place: int) -> str:
        step = self._begun.workflow.steps[place]
        if step.role:
            return title_of(place, step)
        name = f" ({step.name})" if step.name else ""
        # what another project calls its task is not for everyone who may read this log
        sql = "SELECT name FROM tasks WHERE task_id = ? AND project_id = ?"
        row = self._store.row(sql, (step.task_id, self._execution.project_id))
        return f"step {place + 1}{name}: task {step.task_id if row is None else row['name']}"

    def _word(self, place: int) -> str:
        state = self._steps[place]
        return f"{self._title(place)}: {state.status}" + (f", {state.reason}" if state.reason else "")

    def outcome(self) -> Outcome | None:
        """What its end is; None before it."""
        own = outcome_of(self._statuses(), [self._word(place) for place in range(len(self._steps))])
        if own is None or self._ending is None:
            return own
        return cut_short(self._ending, self._timeout_s())

    def _timeout_s(self) -> float | None:
        until_ns, start_ns = self._begun.until_ns, self._execution.start_ns
        return None if until_ns is None or start_ns is None else round((until_ns - start_ns) / lifecycle.NS)

    def hear(self) -> None:
        """Take in what became of the steps under way."""
        for state in self._steps:
            if state.status == RUNNING and state.child_id is None:
                self._hear_verdict(state)
            elif state.status == RUNNING:
                self._hear_child(state.place)

    def _hear_verdict(self, state: StepState) -> None:
        said = f" by {state.decided_by}" + (f": {state.comment}" if state.comment else "")
        if state.verdict == "APPROVED":
            self._change(state.place, status=SUCCESS)
            self._say(f"{self._title(state.place)}: approved{said}")
        elif state.verdict == "REJECTED":
            self._end_step(state.place, FAILED, f"rejected{said}")
        elif state.until_ns is not None and self._now_ns >= state.until_ns:
            self._end_step(state.place, TIMED_OUT, "nobody decided in time")

    def _hear_child(self, place: int) -> None:
        """What became of a step's execution, or of the last of its attempts."""
        while True:
            child_id = self._steps[place].child_id or ""
            try:
                child = find_execution(self._store, child_id)
            except NotFoundError:
                self._end_step(place, LOST, f"execution {child_id} was removed")
                return
            if child.status in OPEN_STATUSES:
                return
            sql = "SELECT execution_id FROM executions WHERE retry_of = ? AND attempt = ?"
            again = self._store.row(sql, (child_id, child.attempt + 1))
            if again is None:
                self._end_step(place, child.status, _why(child, self._execution.project_id))
                return
            self._change(place, child_id=again["execution_id"])
            said = f"{child.status}, is tried again as execution {again['execution_id']}"
            self._say(f"{self._title(place)}: {said}")

    def begin_next(self) -> None:
        """Begin what is next, leave out what is not to be."""
        workflow = self._begun.workflow
        while (turn := next_turn(workflow, self._statuses())) is not None:
            if turn.reason:
                self._end_step(turn.place, SKIPPED, turn.reason)
            elif workflow.steps[turn.place].role:
                self._ask(turn.place, workflow.steps[turn.place])
            else:
                self._start(turn.place, workflow.steps[turn.place])
        if workflow.mode == "CONCURRENT" and is_stopped(workflow, self._statuses()):
            self._take_back()

    def _ask(self, place: int, step: Step) -> None:
        until_ns, within = None, ""
        if step.timeout is not None:
            until_ns = after(self._now_ns, step.timeout * UNIT_SECONDS[step.timeout_unit or "SECOND"])
            within = f", within {step.timeout} {step.timeout_unit}"
        self._change(place, status=RUNNING, until_ns=until_ns)
        self._say(f"{self._title(place)}: waits for {step.role}{within}")

    def _start(self, place: int, step: Step) -> None:
        try:
            child = self._request(step)
        except (InvalidInputError, NotFoundError, DeniedError, ConflictError) as error:
            self._end_step(place, FAILED, f"not started: {error}")
            return
        self._change(place, status=RUNNING, child_id=child.execution_id)
        self._say(f"{self._title(place)}: started execution {child.execution_id}")

    def _request(self, step: Step) -> Execution:
        """Have the task of a step executed, with the rights that its starter has now.

        Raises: NotFoundError; DeniedError; ConflictError; InvalidInputError.
        """
        own = self._execution
        identity = starter_of(self._store, own)
        if identity is None:
            word = "insufficient privilege"
            raise DeniedError(INSUFFICIENT_PRIVILEGE, word, "the user whose rights it has is off or gone")
        task = find_task(self._store, identity, step.task_id, EXECUTOR)
        if not task.is_enabled:
            raise ConflictError("it is off (enabledFg)")
        contents = complete(task.parameters, step.parameter_map)
        hidden = sorted(secret_names(task.parameters) & contents.keys())
        if hidden:
            raise InvalidInputError(f"{hidden[0]} is a SECRET by now, which a step does not keep")
        start = Start(
            task_id=task.task_id,
            trigger="WORKFLOW",
            user_id=own.user_id,
            parameter_map=contents,
            parent_id=own.execution_id,
            rights=own.rights,
        )
        return request_execution(self._store, start)

    def _take_back(self) -> None:
        """Of steps that go at once: what has not begun when one failed (STOP) does not begin."""
        for state in self._steps:
            if state.status != RUNNING:
                continue
            if state.child_id is None:
                self._end_step(state.place, SKIPPED, "another step failed (STOP)")
                continue
            child = find_execution(self._store, state.child_id)
            if child.status == PENDING and child.claimer is None:
                carriage.abort(self._store, child.execution_id)
                self._end_step(state.place, SKIPPED, "another step failed (STOP)")

    def refuse(self, fault: str) -> Outcome:
        """Leave all steps out, because of a fault of the whole."""
        for state in self._steps:
            self._change(state.place, status=SKIPPED)
        self._say(fault)
        return lifecycle.Outcome(FAILED, None, fault)

    def end_rest(self, ending: str) -> None:
        """Have what is under way end, and nothing more begin."""
        if self._ending is None:
            self._say(f"{_ENDED[ending]}: what is under way is ended")
        self._ending = ending
        for state in self._steps:
            if state.status == PENDING:
                self._end_step(state.place, SKIPPED, _ENDED[ending])
            elif state.status == RUNNING and state.child_id is None:
                self._end_step(state.place, ABORTED, _ENDED[ending])
            elif state.status == RUNNING and state.child_id is not None:
                child = find_execution(self._store, state.child_id)
                if child.status != ABORTING:
                    carriage.abort(self._store, child.execution_id)
                self._hear_child(state.place)

    def save(self, files: ExecutionFiles, secrets: Callable[[Execution], Iterable[str]], log: Log) -> None:
        """Write the steps, and the log as it is then."""
        execution_id = self._execution.execution_id
        for place in sorted(self._changed):
            save_step(self._store, execution_id, self._steps[place])
        text = self._shown(secrets, log) if self._lines else ""
        sql = "UPDATE workflows SET ending = ?, log = log || ? WHERE execution_id = ?"
        self._store.execute(sql, (self._ending, text, execution_id))
        self._store.touch()
        if text:
            write_log(self._store, files, execution_id, log)

    def _shown(self, secrets: Callable[[Execution], Iterable[str]], log: Log) -> str:
        try:
            return masked("".join(self._lines), secrets(self._execution))
        except CtrlExecError as error:  # without knowing the secrets nothing may be shown
            log.error("task-log", execution=self._execution.execution_id, error=str(error))
            return f"[left out, for the secrets to mask can't be read: {len(self._lines)}]\n"


def _why(child: Execution, project_id: str) -> str | None:
    """Why an execution did not succeed; of another project's no more than its exit code."""
    if child.status == SUCCESS:
        return None
    parts = [] if child.exit_code is None else [f"exit {child.exit_code}"]
    if child.reason and child.project_id == project_id:
        parts.append(child.reason)
    return ", ".join(parts) or None


def write_log(store: Store, files: ExecutionFiles, execution_id: str, log: Log) -> None:
    """Have the log on disk be what the database has of it; before the commit, so that nothing is missing.

    What is not committed after all is written over by the next move.
    """
    row = store.row("SELECT log FROM workflows WHERE execution_id = ?", (execution_id,))
    try:
        disk.make_dirs(files.directory, 0o750)
        disk.write_atomic(files.log_path(execution_id), row["log"].encode() if row else b"", _LOG_MODE)
    except StorageError as error:  # the workflow matters more than its log
        log.error("task-log", execution=execution_id, error=str(error))
