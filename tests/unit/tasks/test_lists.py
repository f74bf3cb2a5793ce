"""Lists of many executions: each combination of filters finds what it should, and finds it by an index."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from ctrl_exec.tasks.execution.executions import ExecutionFilter, list_executions
from ctrl_exec.tasks.models import Execution
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.ulid import new_ulid
from tests.support.history import DAY_NS, DAYS, SEEN, History, lay_down
from tests.unit.tasks.conftest import NOW_NS

COUNT = 3000
PAGE = 40


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, History]]:
    """A month of executions."""
    with Store(str(tmp_path_factory.mktemp("month") / "tasks.db")) as store:
        yield store, lay_down(store, COUNT, NOW_NS)


def filters(month: History) -> Iterator[ExecutionFilter]:
    """Every combination, of whoever sees all, some or one project, or none."""
    middle_ns = NOW_NS - DAYS // 2 * DAY_NS
    spans = ((None, None), (middle_ns, None), (None, middle_ns), (middle_ns, middle_ns + DAY_NS))
    seen = (None, tuple(month.projects[:SEEN]), (month.projects[0],), (month.projects[1],) * 2, ())
    statuses = ((), ("SUCCESS",), ("LOST",), ("FAILED", "TIMED_OUT", "LOST"), ("RUNNING", "RUNNING"))
    for task_id, several, projects, (from_ns, to_ns) in product(
        (None, month.tasks[0]), statuses, seen, spans
    ):
        yield ExecutionFilter(projects, task_id, several, from_ns, to_ns)


def is_meant(execution: Execution, wanted: ExecutionFilter) -> bool:
    """What the filter says, for one execution."""
    return (
        (wanted.task_id is None or execution.task_id == wanted.task_id)
        and (wanted.project_ids is None or execution.project_id in wanted.project_ids)
        and (not wanted.statuses or execution.status in wanted.statuses)
        and (wanted.from_ns is None or execution.created_ns >= wanted.from_ns)
        and (wanted.to_ns is None or execution.created_ns < wanted.to_ns)
    )


def test_every_combination_finds_its_own_newest_first(month: tuple[Store, History]) -> None:
    """As reading everything would, from the beginning and from a page in the middle."""
    store, history = month
    everything = list_executions(store, ExecutionFilter(), limit=COUNT + 1)
    assert len(everything) == COUNT
    assert [each.execution_id for each in everything] == sorted(
        (each.execution_id for each in everything), reverse=True
    )
    middle_id = new_ulid(NOW_NS - DAYS // 2 * DAY_NS + DAY_NS // 2)
    found_some = 0
    for wanted in filters(history):
        expected = [each for each in everything if is_meant(each, wanted)]
        assert list(list_executions(store, wanted, limit=PAGE)) == expected[:PAGE], wanted
        later = [each for each in expected if each.execution_id < middle_id]
        assert list(list_executions(store, wanted, limit=PAGE, before_id=middle_id)) == later[:PAGE], wanted
        found_some += bool(later)
    assert found_some > 50


def plan(store: Store, wanted: ExecutionFilter, before_id: str | None) -> list[str]:
    """How SQLite goes about it."""
    statements: list[str] = []
    store.connection.set_trace_callback(statements.append)
    try:
        list_executions(store, wanted, limit=PAGE, before_id=before_id)
    finally:
        store.connection.set_trace_callback(None)
    (statement,) = [each for each in statements if "FROM" in each and not each.startswith("--")]
    return [row["detail"] for row in store.rows(f"EXPLAIN QUERY PLAN {statement}")]


def test_every_combination_goes_by_an_index(month: tuple[Store, History]) -> None:
    """None reads executions that it does not show, but for those of one workflow."""
    store, history = month
    for wanted, before_id in product(filters(history), (None, new_ulid(NOW_NS))):
        steps = plan(store, wanted, before_id)
        is_plain = wanted.task_id is None and wanted.project_ids is None and not wanted.statuses
        is_bounded = before_id is not None or wanted.from_ns is not None or wanted.to_ns is not None
        if is_plain:
            how = "SEARCH" if is_bounded else "SCAN"
            assert [each.startswith(f"{how} executions USING INDEX") for each in steps] == [True], steps
            continue
        owner = "task" if wanted.task_id is not None else "project" if wanted.project_ids is not None else ""
        index = {
            (True, True): f"executions_of_{owner}_in_state",
            (True, False): f"executions_of_{owner}",
            (False, True): "executions_by_status",
        }[bool(owner), bool(wanted.statuses)]
        (inner,) = [each for each in steps if each.startswith("SEARCH each")]
        assert f" {index} (" in inner, (wanted, steps)
        assert ("execution_id" in inner) == is_bounded, (wanted, steps)
        (outer,) = [each for each in steps if each.startswith("SEARCH executions")]
        assert "(execution_id=?)" in outer, steps
        assert not any(each.startswith(("SCAN executions", "SCAN each")) for each in steps), steps
    steps = plan(store, ExecutionFilter((history.projects[0],), None, ("LOST",), NOW_NS, NOW_NS, "x"), None)
    assert any("executions_of_parent" in each for each in steps), steps


def test_those_of_one_parent(tmp_path: Path) -> None:
    """With the other filters too."""
    with Store(str(tmp_path / "tasks.db")) as store:
        history = lay_down(store, 50, NOW_NS)
        everything = list_executions(store, ExecutionFilter(), limit=50)
        chosen = everything[::7]
        for each in chosen:
            store.execute(
                "UPDATE executions SET parent_id = 'flow' WHERE execution_id = ?", (each.execution_id,)
            )
        found = list_executions(store, ExecutionFilter(parent_id="flow"))
        ids = [each.execution_id for each in chosen]
        assert [each.execution_id for each in found] == ids
        middle = chosen[3]
        for wanted in filters(history):
            narrowed = ExecutionFilter(
                wanted.project_ids, wanted.task_id, wanted.statuses, wanted.from_ns, wanted.to_ns, "flow"
            )
            expected = [each for each in found if is_meant(each, wanted)]
            assert list(list_executions(store, narrowed)) == expected
            later = [each for each in expected if each.execution_id < middle.execution_id]
            assert list(list_executions(store, narrowed, before_id=middle.execution_id)) == later
