"""The carrier of an execution: the one process that has begun it, keeps its log, and writes its end.

Owns the order: hold the lock, become RUNNING, do what its kind does, write the end, let go. What
happens in between belongs to the kinds. Whatever goes wrong, the execution has an end.
"""

from __future__ import annotations

from ctrl_exec.common.errors import CtrlExecError, LostCommandError, StorageError
from ctrl_exec.common.masking import Masker
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.services.authority import Caller
from ctrl_exec.tasks.definitions import load_task
from ctrl_exec.tasks.execution import carriage, lifecycle
from ctrl_exec.tasks.execution.execution_log import ExecutionLog, remove_log
from ctrl_exec.tasks.execution.executions import find_execution
from ctrl_exec.tasks.execution.materials import Materials, constants_of, gather
from ctrl_exec.tasks.kinds.attempt import Attempt
from ctrl_exec.tasks.models import (
    ABORTED,
    AGENT_SCRIPT,
    FAILED,
    HTTP_REQUEST,
    LOCAL_COMMAND,
    LOST,
    SUCCESS,
    Task,
)
from ctrl_exec.tasks.outbound.outgoing import Allowance
from ctrl_exec.tasks.projects import load_project

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.tasks.execution.carriage import ExecutionFiles
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.models import Execution
    from ctrl_exec.tasks.store import Store

    Secrets = Callable[[Store, Execution], tuple[Mapping[str, str], Mapping[str, str]]]


@value
class CarrierParts:
    """What a carrier works with. `secrets` gives those of the project, and the execution's own."""

    dispatcher: Dispatcher
    store: Store
    files: ExecutionFiles
    environment: Mapping[str, str]
    secrets: Secrets
    max_log_bytes: int = 50 << 20
    default_timeout_s: float | None = None
    allowance: Allowance = Allowance()


def carry(parts: CarrierParts, execution_id: str, claimer: str) -> bool:
    """Carry a claimed execution to its end; False if it is not this claimer's to begin.

    Raises: StorageError if not even its end could be written: recovery finds it.
    """
    held = parts.files.hold(execution_id)
    if held is None:  # recovery looks at it, or one whose claim was given back has not gone yet
        carriage.give_back(parts.store, execution_id, claimer)
        return False
    try:
        if not carriage.begin(parts.store, execution_id, claimer):
            return _refuse(parts, execution_id, claimer)
        _carry_begun(parts, execution_id)
    finally:
        parts.files.release(execution_id, held)
    return True


def _refuse(parts: CarrierParts, execution_id: str, claimer: str) -> bool:
    """End what was aborted between claim and begin."""
    found = find_execution(parts.store, execution_id)
    if found.claimer == claimer:
        carriage.end(parts.store, None, execution_id, lifecycle.Outcome(ABORTED, None, "aborted"))
    return False


def _carry_begun(parts: CarrierParts, execution_id: str) -> None:
    execution = find_execution(parts.store, execution_id)
    task = load_task(parts.store, execution.task_id)
    log = parts.dispatcher.log
    facts = {"execution": execution_id, "task": execution.task_id, "trigger": execution.trigger}
    log.info("task-start", attempt=execution.attempt, user=execution.user_id, **facts)
    output = _Output(parts, execution_id, _log_output(task))
    try:
        outcome = _attempt(parts, execution, task, output)
    except LostCommandError as error:  # recovery writes its end, once nothing of it runs any more
        output.finish(has_failed=True)
        log.error("task-lost", error=str(error), group=error.pid, **facts)
        return
    except CtrlExecError as error:
        outcome = lifecycle.Outcome(FAILED, None, str(error))
    except Exception as error:  # noqa: BLE001 - a process border: it must not stay RUNNING
        outcome = lifecycle.Outcome(FAILED, None, f"error in ctrl-exec: {type(error).__name__}")
        log.error("task-end", error=f"{type(error).__name__}: {error}", **facts)
    output.finish(has_failed=outcome.status != SUCCESS)
    carriage.end(parts.store, task, execution_id, outcome)
    final = find_execution(parts.store, execution_id)
    log.info("task-end", status=final.status, exit=final.exit_code, reason=final.reason, **facts)


def _attempt(parts: CarrierParts, execution: Execution, task: Task | None, output: _Output) -> Outcome:
    if task is None:
        return lifecycle.Outcome(LOST, None, "its task is gone")
    project = load_project(parts.store, execution.project_id)
    materials = _materials(parts, execution, task)
    output.mask(tuple(materials.secrets.values()))
    attempt = Attempt(
        execution=execution,
        task=task,
        materials=materials,
        dispatcher=parts.dispatcher,
        store=parts.store,
        caller=_caller(parts.store, execution),
        say=output.say,
        wants_end=lambda: carriage.is_aborting(parts.store, execution.execution_id),
        timeout_s=lifecycle.timeout_s(task, project, parts.default_timeout_s),
    )
    return _carry_kind(attempt, parts)


def _carry_kind(attempt: Attempt, parts: CarrierParts) -> Outcome:
    # a carrier imports what its kind needs and nothing of the others
    kind = attempt.task.task_type
    if kind == LOCAL_COMMAND:
        from ctrl_exec.tasks.kinds import local_command

        return local_command.carry(attempt, parts.environment)
    if kind == AGENT_SCRIPT:
        from ctrl_exec.tasks.kinds import agent_script

        return agent_script.carry(attempt)
    if kind == HTTP_REQUEST:
        from ctrl_exec.tasks.kinds import http_request

        return http_request.carry(attempt, parts.allowance)
    return lifecycle.Outcome(FAILED, None, f"{kind} has no process to carry it")


def _materials(parts: CarrierParts, execution: Execution, task: Task) -> Materials:
    project_secrets, secret_parameters = parts.secrets(parts.store, execution)
    return gather(
        task,
        execution,
        constants=constants_of(parts.store, execution.project_id),
        project_secrets=project_secrets,
        secret_parameters=secret_parameters,
    )


def _caller(store: Store, execution: Execution) -> Caller:
    """Whose name an agent sees: who started it, or its owner when the clock did."""
    row = store.row("SELECT name FROM users WHERE user_id = ?", (execution.user_id,))
    return Caller(username="" if row is None else row["name"], via="scheduler", auth="token")


def _log_output(task: Task | None) -> str:
    return str(getattr(task.kind, "log_output", "ALWAYS")) if task else "ALWAYS"


class _Output:
    """The log of the execution as its task wants it, without secrets."""

    def __init__(self, parts: CarrierParts, execution_id: str, wanted: str) -> None:
        self._path = parts.files.log_path(execution_id)
        self._log = None if wanted == "NEVER" else ExecutionLog(self._path, parts.max_log_bytes)
        self._wanted = wanted
        self._maskers = {1: Masker(()), 2: Masker(())}
        self._complain = parts.dispatcher.log
        self._id = execution_id

    def mask(self, secrets: tuple[str, ...]) -> None:
        self._maskers = {1: Masker(secrets), 2: Masker(secrets)}

    def say(self, stream: int, chunk: bytes) -> None:
        self._write(self._maskers[stream].feed(chunk))

    def _write(self, shown: bytes) -> None:
        if self._log is None or not shown:
            return
        try:
            self._log.write(shown)
        except StorageError as error:
            # the command matters more than its log
            self._complain.error("task-log", execution=self._id, error=str(error))
            self._log.close()
            self._log = None

    def finish(self, *, has_failed: bool) -> None:
        for masker in self._maskers.values():
            self._write(masker.flush())
        if self._log is not None:
            self._log.close()
        if self._wanted == "ON_FAILURE" and not has_failed:
            with suppress(OSError):
                remove_log(self._path)
