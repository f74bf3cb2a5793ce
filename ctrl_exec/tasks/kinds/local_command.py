"""`LOCAL_COMMAND`: a program, or a line for bash, on the dispatcher itself.

Executed by `ctrl-exec-local`, or in place where no such service is configured.
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import ConfigError, CtrlExecError, LostCommandError
from ctrl_exec.common.process import account_of
from ctrl_exec.local.order import PATH, SHELL, CommandOrder
from ctrl_exec.tasks.execution import carriage, lifecycle
from ctrl_exec.tasks.models import FAILED, LOST, LocalCommand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec.local.client import LocalService
    from ctrl_exec.local.order import CommandEnd
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.kinds.attempt import Attempt

PASSED_VARIABLES = ("LANG", "LC_ALL", "TZ")
OWN_VARIABLES = ("HOME", "USER", "LOGNAME")


def carry(attempt: Attempt, inherited: Mapping[str, str]) -> Outcome:
    """Execute it; `inherited` is our environment, of which a few variables go on.

    Raises: StorageError if its group or its output can't be kept; nothing of it lives then.
    LostCommandError if the service that executed it died and what it started may still run.
    """
    config = attempt.dispatcher.config
    try:
        if config.local_socket:
            end = _run_by_service(attempt, order_of(attempt, inherited))
        else:
            end = _run_in_place(attempt, inherited)
    except LostCommandError as error:
        return _after_loss(attempt, error)
    except CtrlExecError as error:
        attempt.say(2, f"{error}\n".encode())
        return lifecycle.Outcome(FAILED, lifecycle.KILLED_EXIT, str(error))
    outcome = lifecycle.of_command(
        end.exit_code,
        end.signal,
        timed_out_s=attempt.timeout_s if end.timed_out else None,
        is_aborted=end.was_ended,
    )
    if end.is_gone:
        return outcome
    reason = f"{outcome.reason or 'ended'}; something it started could not be ended"
    return lifecycle.Outcome(outcome.status, outcome.exit_code, reason)


def order_of(attempt: Attempt, inherited: Mapping[str, str]) -> CommandOrder:
    """The command as it is executed, with the variables it gets wherever that is.

    Raises: InvalidInputError.
    """
    kind = attempt.task.kind
    assert isinstance(kind, LocalCommand)
    passed = {name: inherited[name] for name in PASSED_VARIABLES if name in inherited}
    if kind.uses_shell:
        argv: tuple[str, ...] = (SHELL, "-c", kind.command_line or "")
    else:
        argv = (kind.program or "", *attempt.materials.arguments(kind.args or ()))
    return CommandOrder(argv, passed | attempt.materials.variables, attempt.timeout_s)


def _run_by_service(attempt: Attempt, order: CommandOrder) -> CommandEnd:
    return service_of(attempt).run_command(
        order,
        on_output=attempt.say,
        wants_end=attempt.wants_end,
        before_exec=lambda pid, started: _note_group(attempt, pid, started),
    )


def service_of(attempt: Attempt) -> LocalService:
    """The service that executes commands."""
    from ctrl_exec.local.client import LocalService

    config = attempt.dispatcher.config
    return LocalService(config.local_socket, config.local_user)


def _run_in_place(attempt: Attempt, inherited: Mapping[str, str]) -> CommandEnd:
    from ctrl_exec.common.descendants import started_at
    from ctrl_exec.common.value import replace
    from ctrl_exec.local.in_place import run_command

    config = attempt.dispatcher.config
    if config.local_user != config.service_user:
        _check_user(config.local_user)
    attempt.dispatcher.log.info(
        "local-command", execution=attempt.execution.execution_id, user=os.geteuid(), place="in the scheduler"
    )
    order = order_of(attempt, inherited)
    own = {name: inherited[name] for name in OWN_VARIABLES if name in inherited}
    return run_command(
        replace(order, environment={"PATH": PATH, **own, **order.environment}),
        on_output=attempt.say,
        wants_end=attempt.wants_end,
        before_exec=lambda pid: _note_group(attempt, pid, started_at(pid)),
    )


def _check_user(name: str) -> None:
    """Commands are executed here as who we are: one who was to have less must not get more.

    Raises: ConfigError.
    """
    if account_of(name, "")[0] != os.geteuid():
        raise ConfigError(f"local_user: the scheduler does not run as {name}, and there is no local_socket")


def _after_loss(attempt: Attempt, error: LostCommandError) -> Outcome:
    """It is LOST once it is gone; else recovery says so later. Raises: LostCommandError."""
    attempt.say(2, f"{error}\n".encode())
    try:
        is_gone = service_of(attempt).end_group(error.pid, error.started)
    except CtrlExecError:
        raise error from None
    if not is_gone:
        raise error
    return lifecycle.Outcome(LOST, None, str(error))


def _note_group(attempt: Attempt, pid: int, started: int) -> None:
    carriage.note_group(attempt.store, attempt.execution.execution_id, pid, started)
