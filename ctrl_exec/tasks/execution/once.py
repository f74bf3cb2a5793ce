"""An execution that is requested once, however often the request is sent.

Owns what sending it again means: the execution of the first request, as it is by now, for whoever may
still start its task. Which key stands for what is kept by `services.idempotency`.
"""

from __future__ import annotations

from ctrl_exec.common.errors import ConflictError, SpentKeyError
from ctrl_exec.tasks.execution.execution_requests import find, start
from ctrl_exec.tasks.models import EXECUTOR
from ctrl_exec.tasks.ulid import ULID, new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ctrl_exec.services.idempotency import Claim, IdempotencyKeys
    from ctrl_exec.tasks.execution.execution_requests import Seal
    from ctrl_exec.tasks.models import Execution
    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

    Claiming = Callable[[str, Callable[[str], bool]], Claim]


def start_once(
    store: Store, identity: Identity, document: dict[str, Any], seal: Seal, claiming: Claiming
) -> tuple[Execution, bool]:
    """The execution that the request starts, or started before, and whether it was before.

    `claiming(execution_id, exists)` claims the request's key. Raises: as `start`; ConflictError where the
    key stands for another body or a deleted execution; BusyError while another process is about to begin.
    """
    created_ns = store.clock_ns()
    execution_id = new_ulid(created_ns)
    try:
        claim = claiming(execution_id, lambda known: is_on_record(store, known))
    except SpentKeyError as error:
        raise ConflictError(f"this Idempotency-Key began {error.reqid}, which is deleted") from error
    if not claim.is_ours:
        return find(store, identity, claim.identity, EXECUTOR), True
    try:
        execution = start(store, identity, document, seal, made=(execution_id, created_ns))
    except BaseException:
        # what fails after the commit has begun it all the same
        if is_on_record(store, execution_id):
            claim.settle()
        else:
            claim.withdraw()
        raise
    claim.settle()
    return execution, False


def is_on_record(store: Store, execution_id: str) -> bool:
    """Whether there is such an execution. Raises: StorageError."""
    sql = "SELECT 1 FROM executions WHERE execution_id = ?"
    return bool(ULID.fullmatch(execution_id)) and store.row(sql, (execution_id,)) is not None


def settle_keys(store: Store, keys: IdempotencyKeys) -> None:
    """Before executions are purged: a key whose claimant died must know that it began one."""
    keys.settle_all(lambda known: is_on_record(store, known))
