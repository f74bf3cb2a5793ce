"""Running a local command in this very process's care, as whoever we are."""

from __future__ import annotations

from ctrl_exec.local.command import Command
from ctrl_exec.local.outputs import ASK_EVERY_S, Outputs, Wish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.local.order import CommandEnd, CommandOrder


def run_command(
    order: CommandOrder,
    *,
    on_output: Callable[[int, bytes], None],
    wants_end: Callable[[], bool],
    before_exec: Callable[[int], object],
) -> CommandEnd:
    """Run it; what it leaves in its group is ended with it.

    `on_output` gets (1 or 2, bytes) as they come; `wants_end` is asked twice a second; `before_exec` gets
    the pid, which is its group too, before anything is executed.

    Raises: ProgramError if it cannot be executed; whatever `before_exec` and `on_output` raise, all of
    it being gone then.
    """
    command = Command(order)
    outputs: Outputs | None = None
    try:
        command.start(before_exec)
        outputs = Outputs(command.take_outputs(), on_output)
        wish = Wish(wants_end)
        while not command.is_over():
            outputs.turn(command.fds(), min(ASK_EVERY_S, command.wait_s()))
            if wish.comes():
                command.end()
        outputs.drain()
        return command.outcome()
    finally:
        command.close()
        if outputs is not None:
            outputs.close()
