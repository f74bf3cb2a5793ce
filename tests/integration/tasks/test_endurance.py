"""kill -9 of scheduler, carriers and API at random moments under load: nothing twice, nothing unsaid, nothing left."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ctrl_exec.tasks.execution.carriage import ExecutionFiles
from ctrl_exec.tasks.models import OPEN_STATUSES, Execution
from ctrl_exec.tasks.purge import sweep
from tests.support.ordeal import COMMANDS, EACH_SECOND, NS, SCRIPTS, Ordeal

pytestmark = pytest.mark.long


def check_due_times(ordeal: Ordeal, executions: Sequence[Execution]) -> None:
    """Each due second of each task has one record: a start, or why there was none."""
    expressions = {name: cron for name, (cron, *_) in {**COMMANDS, **SCRIPTS}.items() if cron is not None}
    for name, task_id in ordeal.tasks.items():
        due = sorted(
            each.scheduled_ns // NS
            for each in executions
            if each.task_id == task_id and each.scheduled_ns is not None
        )
        if name not in expressions:
            assert due == []
            continue
        step = 1 if expressions[name] == EACH_SECOND else 2
        first = ordeal.created_s[name] // step * step + step
        assert due == list(range(first, due[-1] + 1, step)), name
    for each in executions:
        if each.status == "SKIPPED":
            assert each.reason in ("MISSED", "POLICY"), each
            assert (each.start_ns, each.group_pid, each.runs) == (None, None, ()), each


def check_marks(ordeal: Ordeal, executions: Sequence[Execution]) -> None:
    """Each mark is of one execution, each execution has one process or run, what ended well left its mark."""
    marks = {path.name for path in ordeal.marks.iterdir()}
    assert [name for name in marks if name.startswith(("twice", "overlap"))] == []
    groups = Counter(
        (each.group_pid, each.group_started) for each in executions if each.group_pid is not None
    )
    assert [group for group, count in groups.items() if count > 1] == []
    runs = Counter(reqid for each in executions for reqid in each.runs)
    assert [reqid for reqid, count in runs.items() if count > 1] == []
    assert all(len(each.runs) <= 1 for each in executions)
    known = {f"local-{pid}-{started}" for pid, started in groups}
    known |= {f"agent-{reqid}-{host}" for reqid in runs for host in ordeal.site.agents}
    assert [name for name in marks if not name.startswith("lock-") and name not in known] == []
    for each in executions:
        if each.status == "SUCCESS" and each.runs:
            assert {f"agent-{each.runs[0]}-{host}" for host in ordeal.site.agents} <= marks, each
        elif each.status == "SUCCESS":
            assert f"local-{each.group_pid}-{each.group_started}" in marks, each


def check_policies(ordeal: Ordeal, executions: Sequence[Execution]) -> None:
    """As the records tell it: one of a task at a time, or as many as it says."""
    policies = {name: (policy, rest) for name, (_, policy, _, rest) in COMMANDS.items()}
    policies |= {name: (policy, rest) for name, (_, policy, rest) in SCRIPTS.items()}
    for name, task_id in ordeal.tasks.items():
        policy, rest = policies[name]
        spans = sorted(
            (each.start_ns, each.end_ns)
            for each in executions
            if each.task_id == task_id and each.start_ns is not None and each.end_ns is not None
        )
        most = rest.get("maxConcurrency", 1) if policy == "CONCURRENCY" else 1
        steps = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
        level = highest = 0
        for _, step in steps:
            level += step
            highest = max(highest, level)
        assert highest <= most, name
        assert all(begin <= end for begin, end in spans), name


def check_retries(ordeal: Ordeal, executions: Sequence[Execution]) -> None:
    """What failed was tried again once, not before its time, up to the last attempt."""
    by_id = {each.execution_id: each for each in executions}
    again = [each for each in executions if each.trigger == "RETRY" and each.attempt > 1]
    assert len({each.retry_of for each in again}) == len(again) > 0
    delays = {ordeal.tasks["flaky"]: (0, 1), ordeal.tasks["many"]: (1, 2)}
    for each in again:
        before = by_id[each.retry_of or ""]
        assert before.status in ("FAILED", "LOST"), before
        assert each.attempt == before.attempt + 1 <= 3, each
        delay_s, backoff = delays.get(each.task_id, (0, 1))
        if each.start_ns is not None:
            assert before.end_ns is not None
            assert each.start_ns >= before.end_ns + delay_s * backoff ** (before.attempt - 1) * NS, each
    answered = {each.retry_of for each in again}
    for each in executions:
        is_own = each.status == "FAILED" and each.exit_code == 1 and each.execution_id not in ordeal.aborted
        if each.task_id in delays and is_own and each.attempt < 3:
            assert each.execution_id in answered, each


def check_all(ordeal: Ordeal) -> None:
    """Everything that has to be true afterwards."""
    executions = ordeal.settle()
    assert {each.status for each in executions} & set(OPEN_STATUSES) == set()
    assert {"SUCCESS", "FAILED", "LOST", "SKIPPED", "ABORTED"} <= {each.status for each in executions}
    check_due_times(ordeal, executions)
    check_marks(ordeal, executions)
    check_policies(ordeal, executions)
    check_retries(ordeal, executions)
    assert ordeal.leftovers() == []
    directory = ordeal.site.state / "executions"
    with ordeal.site.store() as store:
        sweep(store, ExecutionFiles(str(directory)))  # of who was killed between the end and its farewell
    assert list(directory.glob("*.lock")) == []
    connection = sqlite3.connect(ordeal.site.state / "tasks.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ordeal]:
    """A site as the test's parameters say."""
    seed, schedulers, agents = request.param
    ordeal = Ordeal(tmp_path, seed, schedulers=schedulers, agents=agents)
    try:
        yield ordeal
    finally:
        ordeal.close()


@pytest.mark.parametrize(
    "made",
    [(1, 1, ()), (2, 2, ()), (3, 1, ("host-a", "host-b")), (4, 2, ("host-a",))],
    ids=["seed1-one", "seed2-two", "seed3-one-with-agents", "seed4-two-with-agents"],
    indirect=True,
)
def test_killed_at_any_moment(made: Ordeal) -> None:
    """Fifty times each: two hundred in all, with one scheduler and with two at one database."""
    made.begin()
    made.kill_some(50)
    check_all(made)
