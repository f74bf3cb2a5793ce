"""`LOCAL_COMMAND`: a program, or a line for bash, on the dispatcher itself."""

from __future__ import annotations

import os

from ctrl_exec.common.errors import ConfigError, CtrlExecError
from ctrl_exec.common.process import account_of
from ctrl_exec.tasks import carriage, lifecycle
from ctrl_exec.tasks.commanding import PATH, SHELL, CommandOrder, find_program, run_command
from ctrl_exec.tasks.models import FAILED, LocalCommand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec.tasks.kinds.attempt import Attempt
    from ctrl_exec.tasks.lifecycle import Outcome

PASSED_VARIABLES = ("LANG", "LC_ALL", "TZ", "HOME", "USER", "LOGNAME")


def carry(attempt: Attempt, inherited: Mapping[str, str]) -> Outcome:
    """Execute it here; `inherited` is our environment, of which a few variables go on.

    Raises: StorageError if its group or its output can't be kept; nothing of it lives then.
    """
    try:
        config = attempt.dispatcher.config
        if config.local_user != config.service_user:
            _check_user(config.local_user)
        order = order_of(attempt, inherited)
        end = run_command(
            order,
            on_output=attempt.say,
            wants_end=attempt.wants_end,
            before_exec=lambda pid: _note_group(attempt, pid),
        )
    except CtrlExecError as error:
        attempt.say(2, f"{error}\n".encode())
        return lifecycle.Outcome(FAILED, lifecycle.KILLED_EXIT, str(error))
    return lifecycle.of_command(
        end.exit_code,
        end.signal,
        timed_out_s=attempt.timeout_s if end.timed_out else None,
        is_aborted=end.was_ended,
    )


def _check_user(name: str) -> None:
    """Commands are executed here as who we are: one who was to have less must not get more.

    Raises: ConfigError.
    """
    if account_of(name, "")[0] != os.geteuid():
        raise ConfigError(f"local_user: the scheduler does not run as {name}")


def order_of(attempt: Attempt, inherited: Mapping[str, str]) -> CommandOrder:
    """The command as it is executed. Raises: InvalidInputError, ProgramError."""
    kind = attempt.task.kind
    assert isinstance(kind, LocalCommand)
    passed = {name: inherited[name] for name in PASSED_VARIABLES if name in inherited}
    environment = {"PATH": PATH} | passed | attempt.materials.variables
    if kind.uses_shell:
        argv: tuple[str, ...] = (SHELL, "-c", kind.command_line or "")
    else:
        argv = (find_program(kind.program or ""), *attempt.materials.arguments(kind.args or ()))
    return CommandOrder(argv, environment, attempt.timeout_s)


def _note_group(attempt: Attempt, pid: int) -> None:
    carriage.note_group(attempt.store, attempt.execution.execution_id, pid, carriage.started_at(pid))
