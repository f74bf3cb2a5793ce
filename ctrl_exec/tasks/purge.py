"""What is old goes: executions and their logs by their retention, tokens and counts that nobody needs.

Owns how it is done without holding up anybody: by few rows a transaction, rows before files. A file
whose row is gone, whatever deleted that, is found by the sweep.
"""

from __future__ import annotations

import os
import re
import time

from ctrl_exec.common.errors import NotFoundError
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.tasks.audit import purge_audit
from ctrl_exec.tasks.definitions import load_task
from ctrl_exec.tasks.execution import lifecycle
from ctrl_exec.tasks.execution.execution_log import remove_log
from ctrl_exec.tasks.execution.executions import find_execution
from ctrl_exec.tasks.inbound.deliveries import forget_old
from ctrl_exec.tasks.models import OPEN_STATUSES
from ctrl_exec.tasks.people.tokens import purge_personal, purge_tokens
from ctrl_exec.tasks.projects import load_project
from ctrl_exec.tasks.ulid import first_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ctrl_exec.tasks.execution.carriage import ExecutionFiles
    from ctrl_exec.tasks.store import Store

SLICE = 100
"""So many rows go in one transaction."""
_REST_S = 0.01  # between two: whoever waits to write looks so often at first
_FILE = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\.(?:log(?:\.[0-9]+)*|lock)", re.ASCII)
_FAILURES_S = 3600
_TOKENS_S = 86_400
_PERSONAL_S = 90 * 86_400  # those people made are shown for a while after their end


@value
class Purged:
    """How many of each are gone."""

    executions: int = 0
    files: int = 0
    tokens: int = 0
    audit: int = 0


def purge(
    store: Store, files: ExecutionFiles, default_days: int, *, audit_retention_s: int | None = None
) -> Purged:
    """Remove what is old; `default_days` counts where neither task nor project says.

    Without `audit_retention_s` the audit log keeps everything. Raises: StorageError.
    """
    executions = purge_executions(store, files, default_days)
    now_s = store.clock_ns() // lifecycle.NS
    store.execute("DELETE FROM failures WHERE minute < ?", ((now_s - _FAILURES_S) // 60,))
    _in_slices_of(lambda: forget_old(store, most=SLICE))
    tokens_ns, personal_ns = ((now_s - each) * lifecycle.NS for each in (_TOKENS_S, _PERSONAL_S))
    tokens = _in_slices_of(lambda: purge_tokens(store, tokens_ns, most=SLICE))
    tokens += _in_slices_of(lambda: purge_personal(store, personal_ns, most=SLICE))
    audit = 0
    if audit_retention_s is not None:
        before_ns = (now_s - audit_retention_s) * lifecycle.NS
        audit = _in_slices_of(lambda: purge_audit(store, before_ns, most=SLICE))
    return Purged(executions, sweep(store, files), tokens, audit)


def _in_slices_of(remove_some: Callable[[], int]) -> int:
    """Have some removed until there are fewer than a slice; gives how many that were."""
    count = 0
    while True:
        gone = remove_some()
        count += gone
        if gone < SLICE:
            return count
        time.sleep(_REST_S)


def purge_executions(store: Store, files: ExecutionFiles, default_days: int) -> int:
    """Remove the executions whose time is over, with their logs; gives how many. Raises: StorageError."""
    count = 0
    # of each task one look; to find the tasks in the executions would read all of them
    sql = "SELECT task_id FROM tasks WHERE EXISTS (SELECT 1 FROM executions WHERE task_id = tasks.task_id)"
    for row in store.rows(sql):
        days = _days_of(store, row["task_id"], default_days)
        for execution_ids in _slices(store, row["task_id"], days):
            for execution_id in execution_ids:
                remove_log(files.log_path(execution_id))
            count += len(execution_ids)
    return count


def _days_of(store: Store, task_id: str, default_days: int) -> int:
    task = load_task(store, task_id)
    if task is None:  # removed this moment, and its executions with it
        return default_days
    try:
        return lifecycle.retention_days(task, load_project(store, task.project_id), default_days)
    except NotFoundError:
        return default_days


def _slices(store: Store, task_id: str, days: int) -> Iterator[list[str]]:
    """Delete a task's executions that are over for so many days, some at a time; gives their ids."""
    marks = ", ".join("?" * len(OPEN_STATUSES))
    sql = f"""
    SELECT execution_id FROM executions WHERE task_id = ? AND execution_id > ? AND execution_id < ?
      AND end_ns <= ? AND status NOT IN ({marks})
      AND NOT EXISTS (SELECT 1 FROM executions AS flow WHERE flow.execution_id = executions.parent_id
        AND flow.status IN ('PENDING', 'RUNNING', 'ABORTING')) ORDER BY execution_id LIMIT ?
    """
    after, before_ns = "", store.clock_ns() - days * lifecycle.DAY_NS
    # nothing ended before it was made: the index leads past all that is younger
    youngest = first_ulid(before_ns + lifecycle.NS)
    while True:
        found = [
            row["execution_id"]
            for row in store.rows(sql, (task_id, after, youngest, before_ns, *OPEN_STATUSES, SLICE))
        ]
        if not found:
            return
        after = found[-1]
        yield _delete(store, found, days)
        time.sleep(_REST_S)


def _delete(store: Store, execution_ids: list[str], days: int) -> list[str]:
    gone = []
    with store.writing():
        for execution_id in execution_ids:
            with suppress(NotFoundError):
                if lifecycle.is_over_at(find_execution(store, execution_id), days, store.clock_ns()):
                    store.execute("DELETE FROM executions WHERE execution_id = ?", (execution_id,))
                    gone.append(execution_id)
    return gone


def sweep(store: Store, files: ExecutionFiles) -> int:
    """Remove the files of executions that are no more, unless somebody carries them; gives how many.

    Of one that is over the lock goes: who carried it died between the end and its farewell.
    """
    count = 0
    for names in _in_slices(files.directory):
        owners = {name.partition(".")[0] for name in names}
        marks = ", ".join("?" * len(owners))
        sql = f"SELECT execution_id, status FROM executions WHERE execution_id IN ({marks})"
        known = {row["execution_id"]: row["status"] for row in store.rows(sql, tuple(owners))}
        for execution_id in owners - known.keys():
            count += _remove_orphan(files, execution_id, names)
        for execution_id, status in known.items():
            if status not in OPEN_STATUSES and f"{execution_id}.lock" in names:
                _remove_orphan(files, execution_id, [])
    return count


def _in_slices(directory: str) -> Iterator[list[str]]:
    names: list[str] = []
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if _FILE.fullmatch(entry.name):
                names.append(entry.name)
            if len(names) == SLICE:
                yield names
                names = []
    if names:
        yield names


def _remove_orphan(files: ExecutionFiles, execution_id: str, names: list[str]) -> int:
    held = files.hold(execution_id)
    if held is None:
        return 0
    count = 0
    for name in names:
        if name.startswith(execution_id + ".log"):
            with suppress(OSError):
                os.unlink(f"{files.directory}/{name}")
                count += 1
    files.release(execution_id, held)
    return count
