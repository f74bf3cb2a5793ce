"""Executions of a month in a task layer's database, as many as one likes: what lists and purges cope with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ctrl_exec.tasks.definitions import create_task
from ctrl_exec.tasks.models import Project, Role, Token, User
from ctrl_exec.tasks.people.identity import local_identity
from ctrl_exec.tasks.people.tokens import create_token
from ctrl_exec.tasks.people.users import add_user
from ctrl_exec.tasks.projects import add_project, set_roles
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.ulid import new_ulid

NS = 1_000_000_000
DAY_NS = 86_400 * NS
DAYS = 30
PROJECTS, TASKS_EACH = 20, 5
SEEN = 3
"""So many of the projects the reader sees."""
# of a thousand: what is rare is found among what is not
_SHARES = {
    "SUCCESS": 880, "FAILED": 70, "SKIPPED": 40, "ABORTED": 6, "TIMED_OUT": 3, "LOST": 1,
}  # fmt: skip
_AT_ONCE = 20_000
_COLUMNS = (
    "execution_id", "task_id", "project_id", "trigger", "status", "user_id", "created_ns", "updated_ns",
    "parameter_map", "start_ns", "end_ns", "exit_code", "claimer", "claimed_ns", "group_pid", "group_started",
)  # fmt: skip


@dataclass
class History:
    """What was laid down; `tokens` by user: `admin` sees all, `reader` some projects."""

    now_ns: int
    projects: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)

    def queries(self) -> Iterator[str]:
        """Every combination of filters of the list, a page that begins in the middle among them."""
        middle_ns = self.now_ns - DAYS // 2 * DAY_NS
        choices = (
            ("", f"taskId={self.tasks[0]}"),
            ("", "status=SUCCESS", "status=LOST", "status=FAILED,LOST,TIMED_OUT", "status=RUNNING"),
            ("", f"from={middle_ns}"),
            ("", f"to={middle_ns + DAY_NS}"),
            ("", f"cursor={new_ulid(middle_ns + DAY_NS // 2)}"),
        )
        for chosen in product(*choices):
            yield "&".join(each for each in (*chosen, "limit=50") if each)


def lay_down(store: Store, count: int, now_ns: int) -> History:
    """So many executions of the last DAYS days, all over but for one in a thousand of the last hour."""
    found = History(now_ns)
    root = local_identity(store, "root")
    for name in ("admin", "reader"):
        user = add_user(store, root, User("", name, is_administrator=name == "admin"))
        found.tokens[name] = create_token(store, Token("", user.user_id, "personal", name="of the bench"))[1]
    admin = local_identity(store, "admin")
    for number in range(PROJECTS):
        project = add_project(store, root, Project("", f"Project {number}"))
        found.projects.append(project.project_id)
        for place in range(TASKS_EACH):
            found.tasks.append(create_task(store, admin, _task(project.project_id, place)).task_id)
    reader = store.row("SELECT user_id FROM users WHERE name = 'reader'")
    assert reader is not None
    for project_id in found.projects[:SEEN]:
        set_roles(store, root, project_id, (Role(project_id, "EXECUTOR", reader["user_id"]),))
    marks = ", ".join("?" * len(_COLUMNS))
    sql = f"INSERT INTO executions ({', '.join(_COLUMNS)}) VALUES ({marks})"
    rows = _rows(found, count)
    for first in range(0, count, _AT_ONCE):
        with store.writing() as connection:
            connection.executemany(sql, [next(rows) for _ in range(min(_AT_ONCE, count - first))])
    return found


def _task(project_id: str, number: int) -> dict[str, Any]:
    return {
        "projectId": project_id, "name": f"Task {number}", "taskType": "LOCAL_COMMAND",
        "multipleExecutionPolicy": "CONCURRENCY", "maxConcurrency": 10_000,
        "localCommandTask": {"useShellFg": False, "commandLine": None, "program": "true", "args": [],
                             "logOutput": "NEVER"},
    }  # fmt: skip


def _rows(found: History, count: int) -> Iterator[tuple[Any, ...]]:
    generator = random.Random(count)
    statuses, weights = list(_SHARES), list(_SHARES.values())
    step_ns = DAYS * DAY_NS // count
    for number in range(count):
        created_ns = found.now_ns - (count - number) * step_ns
        # the first task has a tenth of all: a list of it is as hard as one of all
        place = 0 if generator.random() < 0.1 else generator.randrange(len(found.tasks))
        status = generator.choices(statuses, weights)[0]
        if number % 1000 == 999 and found.now_ns - created_ns < 3600 * NS:
            status = "RUNNING"
        start_ns = None if status == "SKIPPED" else created_ns + NS // 10
        end_ns = None if status == "RUNNING" else created_ns + generator.randrange(1, 60) * NS
        group = (None, None) if start_ns is None else (number % 4_000_000 + 2, number)
        yield (
            new_ulid(created_ns), found.tasks[place], found.projects[place // TASKS_EACH], "SCHEDULE", status,
            None, created_ns, end_ns or created_ns, '{"COUNTRY_CODE":"US","CLEAN":true}', start_ns, end_ns,
            0 if status == "SUCCESS" else None, None if start_ns is None else f"77-{number}-aaaa", start_ns, *group,
        )  # fmt: skip
