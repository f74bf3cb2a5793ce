"""A task layer without processes: workflows moved on by hand, their steps begun and ended as a test says."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

from ctrl_exec.common.log import Log
from ctrl_exec.tasks.definitions import create_task, load_task
from ctrl_exec.tasks.execution import carriage, execution_requests
from ctrl_exec.tasks.execution.carriage import ExecutionFiles
from ctrl_exec.tasks.execution.execution_log import read_log
from ctrl_exec.tasks.execution.executions import ExecutionFilter, claim, find_execution, list_executions
from ctrl_exec.tasks.execution.lifecycle import Outcome
from ctrl_exec.tasks.models import ROLES, Execution, Project, Role, User
from ctrl_exec.tasks.people.identity import Identity, local_identity, user_identity
from ctrl_exec.tasks.people.users import add_user
from ctrl_exec.tasks.projects import add_project, set_roles
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.workflow import approvals
from ctrl_exec.tasks.workflow.workflows import WorkflowParts, move_on

PROJECT, OTHER = "home", "elsewhere"
SECRET = "hunter2-hunter2"


class Flows:
    """Two projects, a user for each role in the first, and whatever a test adds."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.files = ExecutionFiles(str(directory / "executions"))
        self.root = local_identity(store, "root")
        self.printed = io.StringIO()
        log = Log("test", stream=self.printed)
        self.parts = WorkflowParts(store, self.files, log, lambda _: (SECRET,))
        self._names = itertools.count(1)
        # what is written here needs to survive no crash: each commit would wait for the disk
        store.connection.execute("PRAGMA synchronous = OFF")
        with store.writing():
            self._populate()

    def _populate(self) -> None:
        for name in ("Home", "Elsewhere"):
            add_project(self.store, self.root, Project("", name))
        self.users = {
            name: add_user(self.store, self.root, User("", name, is_administrator=name == "admin")).user_id
            for name in ("admin", "stranger", *(role.lower() for role in ROLES))
        }
        self.set_roles(PROJECT, {role.lower(): role for role in ROLES})
        self.set_roles(OTHER, {"stranger": "MANAGER"})

    def set_roles(self, project_id: str, roles: dict[str, str]) -> None:
        """Have these be the roles by user."""
        found = tuple(Role(project_id, role, self.users[name]) for name, role in roles.items())
        set_roles(self.store, self.root, project_id, found)

    def identity(self, name: str) -> Identity:
        """A user as a token without limits shows them."""
        found = user_identity(self.store, self.users[name], via="http")
        assert found is not None
        return found

    def task(self, name: str = "", by: str = "admin", **changes: Any) -> str:
        """A task that a carrier would execute; its id."""
        document = {
            "projectId": PROJECT, "name": name or f"Task {next(self._names)}", "taskType": "AGENT_SCRIPT",
            "agentScriptTask": {"script": "hello", "hosts": ["web-01"]},
        }  # fmt: skip
        return create_task(self.store, self.identity(by), document | changes).task_id

    def workflow(self, *steps: str | dict[str, Any], mode: str = "SEQUENTIAL", **changes: Any) -> str:
        """A workflow of these steps, a task's id being one; its id."""
        kind = {
            "steps": [{"taskId": each} if isinstance(each, str) else each for each in steps],
            "mode": mode,
        }
        facts = {"taskType": "WORKFLOW", "agentScriptTask": None, "workflowTask": kind}
        return self.task(**(facts | changes))

    def start(self, task_id: str, by: str = "executor", identity: Identity | None = None) -> str:
        """Have a task executed and workflows moved on; the execution's id."""
        who = identity or self.identity(by)
        made = execution_requests.start(self.store, who, {"taskId": task_id}, lambda _: b"")
        self.move()
        return made.execution_id

    def move(self) -> int:
        """Move every workflow on."""
        return move_on(self.parts)

    def now(self, execution_id: str) -> Execution:
        """The execution as it is."""
        return find_execution(self.store, execution_id)

    def shown(self, execution_id: str) -> dict[str, Any]:
        """The execution on the wire."""
        return execution_requests.encode_execution(self.store, self.now(execution_id), max_running=1)

    def steps(self, execution_id: str) -> list[str]:
        """The states of its steps."""
        return [each["status"] for each in self.shown(execution_id)["steps"]]

    def child(self, execution_id: str, place: int) -> str:
        """The execution of a step."""
        return str(self.shown(execution_id)["steps"][place - 1]["executionId"])

    def children(self, execution_id: str) -> list[Execution]:
        """All executions of its steps, the first one first."""
        found = list_executions(self.store, ExecutionFilter(parent_id=execution_id))
        return list(reversed(found))

    def carry(self, execution_id: str) -> None:
        """Have somebody carry it."""
        assert claim(self.store, execution_id, "me")
        assert carriage.begin(self.store, execution_id, "me")

    def end(self, execution_id: str, status: str = "SUCCESS", exit_code: int | None = 0) -> None:
        """Carry it to this end, and move workflows on."""
        if self.now(execution_id).status == "PENDING":
            self.carry(execution_id)
        task = load_task(self.store, self.now(execution_id).task_id)
        carriage.end(self.store, task, execution_id, Outcome(status, exit_code))
        self.move()

    def end_step(self, execution_id: str, place: int, status: str = "SUCCESS") -> None:
        """Have the execution of a step come to this end."""
        self.end(self.child(execution_id, place), status, 0 if status == "SUCCESS" else 3)

    def abort(self, execution_id: str, by: str = "executor") -> None:
        """Have one end."""
        execution_requests.abort(self.store, self.identity(by), execution_id)
        self.move()

    def decide(self, execution_id: str, verdict: str, by: str = "manager", **document: Any) -> None:
        """Approve or reject, and move workflows on."""
        approvals.decide(self.store, self.identity(by), execution_id, document, verdict, lambda _: (SECRET,))
        self.move()

    def log(self, execution_id: str) -> list[str]:
        """The lines of its log, without their times."""
        pieces = read_log(self.files.log_path(execution_id))
        return [line.partition(" ")[2] for line in b"".join(each for _, each in pieces).decode().splitlines()]
