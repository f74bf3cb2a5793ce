"""Who carries an execution: taken, begun, found dead, ended, each step once whoever tries.

Owns the lock file of a carried execution (held as long as its carrier lives) and the compare-and-swap
steps of its carrier beyond the claim. Starts nothing.

    claim      PENDING, claimer = token                     (executions.claim)
    begin      PENDING with that claimer → RUNNING          before anything is executed
    end        RUNNING | ABORTING → a final state           and the next attempt, in one transaction
    orphans    claimed or running, and nobody holds the lock
"""

from __future__ import annotations

import os

from ctrl_exec.common import files
from ctrl_exec.common.errors import NotFoundError
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.tasks.execution import lifecycle
from ctrl_exec.tasks.execution.executions import (
    WORKFLOW_CLAIMER,
    create_execution,
    find_execution,
    transition,
)
from ctrl_exec.tasks.models import ABORTED, ABORTING, PENDING, RUNNING, Execution
from ctrl_exec.tasks.notification import news
from ctrl_exec.tasks.store import packed
from ctrl_exec.tasks.ulid import ULID, new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.tasks.execution.lifecycle import Outcome
    from ctrl_exec.tasks.models import Task
    from ctrl_exec.tasks.store import Store

_MODE = 0o640


@value
class ExecutionFiles:
    """The files of executions below one directory."""

    directory: str

    def log_path(self, execution_id: str) -> str:
        """Where its output is."""
        return self._path(execution_id, ".log")

    def lock_path(self, execution_id: str) -> str:
        """What its carrier holds."""
        return self._path(execution_id, ".lock")

    def _path(self, execution_id: str, ending: str) -> str:
        if not ULID.fullmatch(execution_id):
            raise ValueError(f"{execution_id[:40]!a} is no execution's id")
        return f"{self.directory}/{execution_id}{ending}"

    def hold(self, execution_id: str) -> int | None:
        """A descriptor that makes this process its carrier; None if another one is. Raises: StorageError."""
        files.make_dirs(self.directory, 0o750)
        while True:
            fd = files.open_lock(self.lock_path(execution_id), _MODE)
            if not files.try_lock(fd):
                os.close(fd)
                return None
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)  # whoever held it let it go between the two: this file is nobody's any more

    def release(self, execution_id: str, fd: int) -> None:
        """Let it go; the lock file goes first, for nobody else may take it then."""
        with suppress(OSError):
            os.unlink(self.lock_path(execution_id))
        os.close(fd)


def begin(store: Store, execution_id: str, claimer: str) -> bool:
    """Have what this claimer has claimed be RUNNING; False if it was taken back, or aborted before."""
    now_ns = store.clock_ns()
    sql = """
    UPDATE executions SET status = 'RUNNING', start_ns = ?, updated_ns = ?
    WHERE execution_id = ? AND status = 'PENDING' AND claimer = ?
    """
    with store.writing():
        if store.execute(sql, (now_ns, now_ns, execution_id, claimer)) != 1:
            return False
        news.note_start(store, find_execution(store, execution_id))
    return True


def note_group(store: Store, execution_id: str, pid: int, started: int) -> None:
    """Keep which process group its command will be, before it is executed. Raises: StorageError."""
    sql = "UPDATE executions SET group_pid = ?, group_started = ? WHERE execution_id = ?"
    store.execute(sql, (pid, started, execution_id))


def note_run(store: Store, execution_id: str, reqid: str) -> None:
    """Keep that it owns a run. Raises: StorageError."""
    with store.writing():
        runs = find_execution(store, execution_id).runs
        if reqid not in runs:
            sql = "UPDATE executions SET runs = ? WHERE execution_id = ?"
            store.execute(sql, (packed([*runs, reqid]), execution_id))


def is_aborting(store: Store, execution_id: str) -> bool:
    """Whether somebody wants it to end."""
    row = store.row("SELECT status FROM executions WHERE execution_id = ?", (execution_id,))
    return row is None or row["status"] == ABORTING


def end(store: Store, task: Task | None, execution_id: str, outcome: Outcome) -> Execution | None:
    """Write the end of a carried execution, and its next attempt where its task has one.

    Gives the next attempt. One that is over already is left as it is.
    """
    with store.writing():
        before = find_execution(store, execution_id)
        final = lifecycle.after_abort(outcome, was_aborting=before.status == ABORTING)
        now_ns = store.clock_ns()
        again_ns = lifecycle.next_attempt_ns(task, before, final.status, now_ns) if task else None
        if before.status == ABORTING:
            again_ns = None
        row = store.row("SELECT sealed FROM executions WHERE execution_id = ?", (execution_id,))
        facts = {"end_ns": now_ns, "exit_code": final.exit_code, "reason": final.reason}
        if not transition(store, execution_id, (PENDING, RUNNING, ABORTING), final.status, facts):
            return None
        store.touch()
        news.note_end(store, before, find_execution(store, execution_id), is_last=again_ns is None)
        if again_ns is None or row is None:
            return None
        again = Execution(
            execution_id=new_ulid(now_ns),
            task_id=before.task_id,
            project_id=before.project_id,
            trigger="RETRY",
            user_id=before.user_id,
            created_ns=now_ns,
            updated_ns=now_ns,
            parameter_map=before.parameter_map,
            attempt=before.attempt + 1,
            retry_of=execution_id,
            not_before_ns=again_ns,
            parent_id=before.parent_id,
            rights=before.rights,
        )
        create_execution(store, again, sealed=row["sealed"])
    return again


def give_back(store: Store, execution_id: str, claimer: str) -> bool:
    """Undo a claim of which nothing came: its carrier died before it began."""
    sql = """
    UPDATE executions SET claimer = NULL, claimed_ns = NULL
    WHERE execution_id = ? AND status = 'PENDING' AND claimer = ?
    """
    with store.writing():
        store.touch()
        return store.execute(sql, (execution_id, claimer)) == 1


def abort(store: Store, execution_id: str) -> str:
    """Have it end: what waits is ABORTED at once, what is carried becomes ABORTING. Gives its state then."""
    with store.writing():
        found = find_execution(store, execution_id)
        if found.status == PENDING and found.claimer is None:
            facts = {"end_ns": store.clock_ns(), "reason": "aborted"}
            transition(store, execution_id, (PENDING,), ABORTED, facts)
        elif found.status in (PENDING, RUNNING):
            transition(store, execution_id, (PENDING, RUNNING), ABORTING)
        store.touch()
    return find_execution(store, execution_id).status


def carried(store: Store) -> tuple[Execution, ...]:
    """All that somebody has claimed and that are not over; workflows have no carrier."""
    # the states by name, as the index on those that are not over has them
    sql = """
    SELECT execution_id FROM executions
    WHERE status IN ('PENDING', 'RUNNING', 'ABORTING') AND (status != 'PENDING' OR claimer IS NOT NULL)
      AND claimer IS NOT ?
    """
    found = (find_carried(store, row["execution_id"]) for row in store.rows(sql, (WORKFLOW_CLAIMER,)))
    return tuple(each for each in found if each is not None)


def find_carried(store: Store, execution_id: str) -> Execution | None:
    """The execution if somebody has claimed it and it is not over; it may be removed by now."""
    try:
        found = find_execution(store, execution_id)
    except NotFoundError:
        return None
    is_claimed = found.status == PENDING and found.claimer is not None
    return found if is_claimed or found.status in (RUNNING, ABORTING) else None


def new_claimer() -> str:
    """A name for one claim of this process: its number, its start, and what makes it the only one."""
    return f"{os.getpid()}-{started_at(os.getpid())}-{os.urandom(8).hex()}"


def is_gone(claimer: str) -> bool:
    """Whether the process that made the claim is known to live no more."""
    pid, _, rest = claimer.partition("-")
    started = rest.partition("-")[0]
    return pid.isdecimal() and started.isdecimal() and started_at(int(pid)) != int(started)


def started_at(pid: int) -> int:
    """When a process started, in ticks since boot; 0 if there is none. Source: proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as about:
            return int(about.read(4096).rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
