"""Waiting for the end of a run.

Owns how often is looked, and that waiting disturbs nobody: only the head of the record is read.
"""

from __future__ import annotations

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import UnknownRunError
from ctrl_exec.operations.carrier import Pause
from ctrl_exec.operations.report import RunReport, report_of
from ctrl_exec.operations.status import recover_one, visible_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.transport import Interrupt

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


def wait(
    dispatcher: Dispatcher,
    caller: Caller,
    reqid: str,
    *,
    within_s: float | None = None,
    interrupt: Interrupt | None = None,
) -> RunReport:
    """The run when it is over; as it stands, not `complete`, when the time is up or the interrupt came.

    Raises: InvalidNameError; DeniedError; UnknownRunError; StorageError.
    """
    head = visible_head(dispatcher, caller, reqid, "status")
    deadline = None if within_s is None else monotonic() + within_s
    pause, pause_s = Pause(interrupt), _FIRST_PAUSE_S
    while not head.complete:
        left_s = _LONGEST_PAUSE_S if deadline is None else deadline - monotonic()
        if left_s <= 0 or pause(min(pause_s, left_s)):
            break
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        recover_one(dispatcher, reqid)
        found = dispatcher.results.head(reqid)
        if found is None:
            raise UnknownRunError(reqid)
        head = found
    record = dispatcher.results.load(reqid)
    if record is None:
        raise UnknownRunError(reqid)
    return report_of(record)
