"""What is old goes, with its files, and nothing else does."""

from __future__ import annotations

from pathlib import Path

from ctrl_exec.tasks.execution import carriage
from ctrl_exec.tasks.execution.carriage import ExecutionFiles
from ctrl_exec.tasks.execution.execution_log import ExecutionLog, log_parts
from ctrl_exec.tasks.execution.executions import Start, claim, find_execution, request_execution
from ctrl_exec.tasks.execution.lifecycle import DAY_NS, Outcome
from ctrl_exec.tasks.purge import SLICE, Purged, purge, sweep
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.ulid import new_ulid
from tests.unit.tasks.conftest import NOW_NS, Clock
from tests.unit.tasks.test_executions import TASK, add_task

HALF_DAY_NS = DAY_NS // 2


def executed(store: Store, files: ExecutionFiles, status: str = "SUCCESS", task_id: str = TASK) -> str:
    """An execution that has ended so, with a log."""
    execution_id = request_execution(store, Start(task_id)).execution_id
    assert claim(store, execution_id, "me")
    assert carriage.begin(store, execution_id, "me")
    write_log(files, execution_id)
    carriage.end(store, None, execution_id, Outcome(status, 0))
    return execution_id


def write_log(files: ExecutionFiles, execution_id: str) -> None:
    """A log in three files."""
    Path(files.directory).mkdir(exist_ok=True)
    log = ExecutionLog(files.log_path(execution_id), 40)
    log.write(b"x" * 100)
    log.close()


def left(store: Store) -> set[str]:
    """The executions that are still there."""
    return {row["execution_id"] for row in store.rows("SELECT execution_id FROM executions")}


def names(files: ExecutionFiles) -> set[str]:
    """The files that are still there."""
    return {each.name for each in Path(files.directory).iterdir()}


def test_the_tasks_word_counts_before_the_projects_before_the_default(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    files = ExecutionFiles(str(tmp_path / "executions"))
    add_task(store, "CONCURRENCY")
    add_task(store, "CONCURRENCY", task_id=(other := new_ulid(NOW_NS)))
    first, second = executed(store, files), executed(store, files, task_id=other)
    clock.now_ns += 5 * DAY_NS + HALF_DAY_NS
    assert purge(store, files, 6) == Purged()
    store.execute("UPDATE projects SET retention_days = 5")
    definition = "json_set(definition, '$.executionRetentionPeriod', 9)"
    store.execute(f"UPDATE tasks SET definition = {definition} WHERE task_id = ?", (other,))
    assert purge(store, files, 6) == Purged(executions=1)
    assert left(store) == {second}
    assert not log_parts(files.log_path(first))
    assert len(log_parts(files.log_path(second))) == 3
    clock.now_ns += 4 * DAY_NS
    assert purge(store, files, 6) == Purged(executions=1)
    assert names(files) == set()


def test_of_no_days_what_failed_stays_for_one(store: Store, clock: Clock, tmp_path: Path) -> None:
    """What is under way is never touched."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    add_task(store, "CONCURRENCY")
    good, bad = executed(store, files), executed(store, files, "FAILED")
    waiting = request_execution(store, Start(TASK)).execution_id
    assert purge(store, files, 0).executions == 1
    assert left(store) == {bad, waiting}
    assert not log_parts(files.log_path(good))
    clock.now_ns += HALF_DAY_NS
    assert purge(store, files, 0).executions == 0
    clock.now_ns += DAY_NS
    assert purge(store, files, 0).executions == 1
    assert find_execution(store, waiting).status == "PENDING"
    assert left(store) == {waiting}


def test_many_go_by_and_by(store: Store, clock: Clock, tmp_path: Path) -> None:
    """More than fit into one transaction."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    add_task(store, "CONCURRENCY")
    with store.writing():
        for _ in range(2 * SLICE + 1):
            executed(store, files)
    clock.now_ns += DAY_NS
    young = executed(store, files)
    assert purge(store, files, 1).executions == 2 * SLICE + 1
    assert left(store) == {young}


def test_files_without_an_execution_are_swept(store: Store, tmp_path: Path) -> None:
    """But for those that somebody carries, and what is none of ours."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    add_task(store)
    kept = executed(store, files)
    gone, carried = new_ulid(NOW_NS), new_ulid(NOW_NS)
    for execution_id in (gone, carried):
        write_log(files, execution_id)
    (tmp_path / "executions" / f"{gone}.log.1.4711").write_text("half made")
    (tmp_path / "executions" / "notes.txt").write_text("somebody's")
    held = files.hold(carried)
    assert held is not None
    try:
        assert sweep(store, files) == 4
    finally:
        files.release(carried, held)
    logs = {f"{each}.log{ending}" for each in (kept, carried) for ending in ("", ".1", ".2")}
    assert names(files) == logs | {"notes.txt"}
    assert sweep(store, files) == 3


def test_tokens_and_counts_that_are_over_go(store: Store, clock: Clock, tmp_path: Path) -> None:
    """Personal ones stay for months, for their owner to see; a spent refresh token stays to its end."""
    files = ExecutionFiles(str(tmp_path / "nowhere"))
    user = {"user_id": "u", "name": "u", "created_ns": NOW_NS, "updated_ns": NOW_NS}
    store.insert("users", user)
    for number, (kind, days) in enumerate((("access", 0), ("refresh", 0), ("refresh", 30), ("personal", 0))):
        token = {"token_id": f"{kind}-{days}", "user_id": "u", "kind": kind, "digest": bytes([number])}
        ends = {"created_ns": NOW_NS, "expires_ns": NOW_NS + days * DAY_NS, "spent_ns": NOW_NS}
        store.insert("tokens", token | ends)
    minute = NOW_NS // 10**9 // 60
    for subject, at in (("old", minute - 100), ("new", minute)):
        store.insert("failures", {"subject": subject, "minute": at, "count": 1})
    assert purge(store, files, 1) == Purged()
    assert [row["subject"] for row in store.rows("SELECT subject FROM failures")] == ["new"]
    clock.now_ns += 2 * DAY_NS
    assert purge(store, files, 1) == Purged(tokens=2)
    kinds = [row["token_id"] for row in store.rows("SELECT token_id FROM tokens ORDER BY token_id")]
    assert kinds == ["personal-0", "refresh-30"]
    clock.now_ns += 90 * DAY_NS
    assert purge(store, files, 1) == Purged(tokens=2)
    assert store.rows("SELECT token_id FROM tokens") == []


def test_a_personal_token_goes_long_after_it_was_revoked(store: Store, clock: Clock, tmp_path: Path) -> None:
    """One without an end stays as long as it may be used."""
    files = ExecutionFiles(str(tmp_path / "nowhere"))
    store.insert("users", {"user_id": "u", "name": "u", "created_ns": NOW_NS, "updated_ns": NOW_NS})
    for name, revoked_ns in (("kept", None), ("revoked", NOW_NS)):
        token = {"token_id": name, "user_id": "u", "kind": "personal", "digest": name.encode()}
        store.insert("tokens", token | {"created_ns": NOW_NS, "revoked_ns": revoked_ns})
    clock.now_ns += 89 * DAY_NS
    assert purge(store, files, 1) == Purged()
    clock.now_ns += 2 * DAY_NS
    assert purge(store, files, 1) == Purged(tokens=1)
    assert [row["token_id"] for row in store.rows("SELECT token_id FROM tokens")] == ["kept"]


def add_audit(store: Store, count: int, at_ns: int) -> None:
    for number in range(count):
        row = {
            "audit_id": f"{at_ns}-{number}", "at_ns": at_ns, "action": "create", "object_type": "task",
            "object_id": "t", "username": "u", "source_ip": "", "via": "cli",
        }  # fmt: skip
        store.insert("audit", row)


def test_the_audit_log_goes_by_its_own_retention(store: Store, clock: Clock, tmp_path: Path) -> None:
    """Without one nothing goes."""
    files = ExecutionFiles(str(tmp_path / "nowhere"))
    with store.writing():
        add_audit(store, SLICE + 1, NOW_NS)
        add_audit(store, 1, NOW_NS + 5 * DAY_NS)
    clock.now_ns += 101 * DAY_NS
    assert purge(store, files, 1) == Purged()
    assert purge(store, files, 1, audit_retention_s=100 * 86_400) == Purged(audit=SLICE + 1)
    assert [row["at_ns"] for row in store.rows("SELECT at_ns FROM audit")] == [NOW_NS + 5 * DAY_NS]


def test_no_transaction_of_a_purge_is_large(store: Store, clock: Clock, tmp_path: Path) -> None:
    """However much there is: others write in between."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    add_task(store, "CONCURRENCY")
    store.insert("users", {"user_id": "u", "name": "u", "created_ns": NOW_NS, "updated_ns": NOW_NS})
    with store.writing():
        add_audit(store, 2 * SLICE, NOW_NS)
        for number in range(2 * SLICE):
            executed(store, files)
            token = {"token_id": f"{number}", "user_id": "u", "kind": "access", "digest": b"%d" % number}
            store.insert("tokens", token | {"created_ns": NOW_NS, "expires_ns": NOW_NS})
    clock.now_ns += 100 * DAY_NS
    sizes, before = [], store.connection.total_changes

    def note(statement: str) -> None:
        nonlocal before
        if statement == "COMMIT":
            sizes.append(store.connection.total_changes - before)
            before = store.connection.total_changes

    store.connection.set_trace_callback(note)
    found = purge(store, files, 1, audit_retention_s=90 * 86_400)
    store.connection.set_trace_callback(None)
    assert (found.executions, found.tokens, found.audit) == (2 * SLICE,) * 3
    assert max(sizes) == SLICE
    assert sum(sizes) == 6 * SLICE


def test_the_lock_of_what_is_over_is_swept(store: Store, tmp_path: Path) -> None:
    """Its carrier died after the end; one that is under way keeps its own."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    add_task(store, "CONCURRENCY")
    over = executed(store, files)
    under_way = request_execution(store, Start(TASK)).execution_id
    for execution_id in (over, under_way):
        (tmp_path / "executions" / f"{execution_id}.lock").touch()
    assert sweep(store, files) == 0
    assert {each for each in names(files) if each.endswith(".lock")} == {f"{under_way}.lock"}
    assert f"{over}.log" in names(files)


def test_old_deliveries_go_slice_by_slice(store: Store, clock: Clock, tmp_path: Path) -> None:
    """More of them than a transaction takes; what may not come again yet stays."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    add_task(store, "CONCURRENCY")
    store.execute(
        """
        INSERT INTO webhooks (webhook_id, project_id, task_id, name, scheme, user_id, definition, sealed,
          created_ns, updated_ns)
        SELECT 'hook', project_id, task_id, 'hook', 'GITHUB', 'x', '{}', x'', 0, 0 FROM tasks
        """
    )
    with store.writing():
        for number in range(2 * SLICE + 50):
            at_ns = clock.now_ns + (number % 5 == 0) * 4 * DAY_NS
            store.insert("deliveries", {"webhook_id": "hook", "delivery": str(number), "at_ns": at_ns})
            body = {"webhook_id": "hook", "digest": str(number).encode(), "at_ns": at_ns, "event": "push"}
            store.insert("signed_bodies", body)
    clock.now_ns += 4 * DAY_NS
    purge(store, files, 6)
    for table, key in (("deliveries", "delivery"), ("signed_bodies", "digest")):
        kept = [int(row[key]) for row in store.rows(f"SELECT {key} FROM {table}")]
        assert sorted(kept) == list(range(0, 2 * SLICE + 50, 5))
