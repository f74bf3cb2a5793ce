"""The history of a task or project that is to go: removed before it, some at a time.

With its owner all of it would go in one transaction, in which nobody else writes: of a hundred thousand
executions for many seconds.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.tasks.store import Store

SLICE = 500
_REST_S = 0.005
_OF = {"task": "task_id", "project": "project_id"}


def forget_history(store: Store, kind: str, owner_id: str) -> int:
    """Remove the executions of a `task` or `project` that are over; gives how many.

    Their logs are swept later. Not within a transaction.

    Raises: StorageError, BusyError; what is gone by then is gone.
    """
    sql = f"""
    DELETE FROM executions WHERE execution_id IN (SELECT execution_id FROM executions
      WHERE {_OF[kind]} = ? AND status NOT IN ('PENDING', 'RUNNING', 'ABORTING') LIMIT ?)
    """
    count = 0
    while True:
        gone = store.execute(sql, (owner_id, SLICE))
        count += gone
        if gone < SLICE:
            return count
        time.sleep(_REST_S)
