"""A task or project goes with its history, and holds up nobody however long that is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ctrl_exec.common.errors import ConflictError
from ctrl_exec.tasks.definitions import remove_task
from ctrl_exec.tasks.execution.executions import Start, request_execution
from ctrl_exec.tasks.execution.forgetting import SLICE
from ctrl_exec.tasks.people.identity import local_identity
from ctrl_exec.tasks.projects import remove_project
from ctrl_exec.tasks.store import Store
from tests.support.history import PROJECTS, TASKS_EACH, History, lay_down
from tests.unit.tasks.conftest import NOW_NS

COUNT = 16_000  # of which the first task has a tenth, its project some more


def changes_at_once(store: Store, act: Callable[[], object]) -> list[int]:
    """What an act does, as the number of rows that each of its transactions changes."""
    sizes, before = [], store.connection.total_changes

    def note(statement: str) -> None:
        nonlocal before
        if statement == "COMMIT":
            sizes.append(store.connection.total_changes - before)
            before = store.connection.total_changes

    store.connection.set_trace_callback(note)
    try:
        act()
    finally:
        store.connection.set_trace_callback(None)
    return [each for each in sizes if each]


def test_a_long_history_goes_bit_by_bit(store: Store) -> None:
    """Before its owner; what is of others stays."""
    history: History = lay_down(store, COUNT, NOW_NS)
    admin = local_identity(store, "admin")
    sql = "SELECT COUNT(*) AS count FROM executions"
    for act, owned in (
        (lambda: remove_task(store, admin, history.tasks[0]), ("task_id", history.tasks[0])),
        (lambda: remove_project(store, admin, history.projects[0]), ("project_id", history.projects[0])),
    ):
        store.execute(
            f"UPDATE executions SET status = 'LOST' WHERE {owned[0]} = ? AND end_ns IS NULL", owned[1:]
        )
        all_of_them = store.rows(sql)[0]["count"]
        of_owner = store.rows(f"{sql} WHERE {owned[0]} = ?", owned[1:])[0]["count"]
        assert of_owner > SLICE
        sizes = changes_at_once(store, act)
        assert max(sizes) == SLICE
        assert len(sizes) >= of_owner // SLICE + 1
        assert store.rows(sql)[0]["count"] == all_of_them - of_owner
    assert store.rows("SELECT COUNT(*) AS count FROM tasks")[0]["count"] == (PROJECTS - 1) * TASKS_EACH


def test_what_may_not_go_keeps_its_history(store: Store) -> None:
    """One is under way."""
    history = lay_down(store, 200, NOW_NS)
    admin = local_identity(store, "admin")
    request_execution(store, Start(history.tasks[0]))
    with pytest.raises(ConflictError, match="under way"):
        remove_task(store, admin, history.tasks[0])
    with pytest.raises(ConflictError, match="under way"):
        remove_project(store, admin, history.projects[0])
    assert store.rows("SELECT COUNT(*) AS count FROM executions")[0]["count"] == 201
