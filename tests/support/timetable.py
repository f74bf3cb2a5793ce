"""A task layer's database with tasks that the clock starts, and what it made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctrl_exec.tasks.codec import encode_task
from ctrl_exec.tasks.definitions import change_task, create_task
from ctrl_exec.tasks.execution.executions import ExecutionFilter, list_executions
from ctrl_exec.tasks.models import Execution, Project, Task, User
from ctrl_exec.tasks.people.identity import local_identity
from ctrl_exec.tasks.people.users import add_user
from ctrl_exec.tasks.projects import add_project
from ctrl_exec.tasks.store import Store

PROJECT = "clockwork"
NS = 1_000_000_000


class TimetableOf:
    """The tasks of one database; every task of it executes `true` and may be executed many times at once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        if store.row("SELECT 1 FROM users") is None:
            root = local_identity(store, "root")
            add_user(store, root, User("", "admin", is_administrator=True))
            add_project(store, root, Project("", "Clockwork"))

    def add(self, name: str, expression: str | None, **fields: Any) -> Task:
        """A task that is scheduled, further fields as on the wire."""
        document = {
            "projectId": PROJECT, "name": name, "taskType": "LOCAL_COMMAND", "scheduledFg": True,
            "cronExpression": expression, "cronTimezone": "UTC", "multipleExecutionPolicy": "CONCURRENCY",
            "localCommandTask": {"useShellFg": False, "commandLine": None, "program": "true", "args": [],
                                 "logOutput": "NEVER"},
        }  # fmt: skip
        if "multipleExecutionPolicy" not in fields:
            document["maxConcurrency"] = 1000
        return create_task(self.store, local_identity(self.store, "admin"), document | fields)

    def change(self, task: Task, **fields: Any) -> Task:
        """The task with some fields changed, as on the wire."""
        identity = local_identity(self.store, "admin")
        return change_task(self.store, identity, task.task_id, lambda before: encode_task(before) | fields)

    def executions(self, task: Task | None = None) -> list[Execution]:
        """What the clock made of the task, in order of due times."""
        wanted = ExecutionFilter(task_id=None if task is None else task.task_id)
        return sorted(
            list_executions(self.store, wanted, limit=1_000_000), key=lambda each: each.scheduled_ns or 0
        )

    def judged(self, task: Task | None = None) -> list[tuple[int, str]]:
        """(due second, reason or START)."""
        return [((each.scheduled_ns or 0) // NS, each.reason or "START") for each in self.executions(task)]


def open_timetable(path: Path) -> TimetableOf:
    """The tasks of `tasks.db` in a directory of state."""
    return TimetableOf(Store(str(path / "tasks.db")))
