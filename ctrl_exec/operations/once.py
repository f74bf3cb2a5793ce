"""A run that is begun once, however often it is asked for: the one who begins it, and all who join.

Owns what joining a run means: to wait for it as the one does who began it, and to be given the same
answer. Which key stands for what is kept by `services.idempotency`.
"""

from __future__ import annotations

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import SpentKeyError
from ctrl_exec.common.value import replace, value
from ctrl_exec.operations.carrier import Pause
from ctrl_exec.operations.report import RunReport, report_of
from ctrl_exec.operations.status import recover_one
from ctrl_exec.services.idempotency import KeyUse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.idempotency import Claim
    from ctrl_exec.services.transport import Interrupt

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


@value
class Once:
    """What makes a request one request: its key, where it was sent, its body without credentials."""

    key: str
    method: str
    path: str
    body: bytes


def claim_run(
    dispatcher: Dispatcher, caller: Caller, once: Once, reqid: str, interrupt: Interrupt | None
) -> Claim:
    """What the caller's key stands for: this run, to be begun now, or one that was begun before.

    Raises: ConflictError; SpentKeyError; BusyError; StorageError.
    """
    use = KeyUse(once.key, caller.username, caller.token, once.method, once.path, once.body)
    return dispatcher.idempotency_keys.claim(
        use, reqid, exists=lambda known: is_on_record(dispatcher, known), wait=Pause(interrupt)
    )


def is_on_record(dispatcher: Dispatcher, reqid: str) -> bool:
    """Whether there is a record of the run. Raises: StorageError."""
    return dispatcher.results.head(reqid) is not None


def join_run(
    dispatcher: Dispatcher, reqid: str, *, patience_s: float, interrupt: Interrupt | None = None
) -> RunReport:
    """What a run came to that another request began, after waiting for it so long at most.

    Raises: SpentKeyError if it was purged meanwhile; StorageError.
    """
    results, wait = dispatcher.results, Pause(interrupt)
    deadline, pause_s = monotonic() + patience_s, _FIRST_PAUSE_S
    while results.is_carried(reqid) and monotonic() < deadline and not wait(pause_s):
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
    if not results.is_carried(reqid):
        recover_one(dispatcher, reqid)
    record = results.load(reqid)
    if record is None:
        raise SpentKeyError(reqid)
    return replace(report_of(record), joined=True)
