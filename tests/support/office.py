"""An instance whose task layer is in use: users with every role, their tokens, two projects, an API."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctrl_exec.tasks.models import ROLES, Project, Role, Token, User
from ctrl_exec.tasks.people.identity import Identity, local_identity
from ctrl_exec.tasks.people.tokens import create_token
from ctrl_exec.tasks.people.users import add_user
from ctrl_exec.tasks.projects import add_project, set_roles
from ctrl_exec.tasks.store import Store
from tests.support.contract import check_answer
from tests.support.fleet import Answer, Fleet
from tests.support.processes import ROOT

PROJECT = "my-awesome-project"
OTHER_PROJECT = "elsewhere"
PEOPLE = ("admin", *(role.lower() for role in ROLES), "stranger", "nobody")
"""An administrator, one for each role in the project, a manager of another project, one without any role."""

_numbers = itertools.count(1)


@dataclass
class Office(Fleet):
    """No agents and no CA: what the task layer alone needs. `tokens` are values by the user's name."""

    tokens: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    kept: http.client.HTTPConnection | None = None

    def __post_init__(self) -> None:
        self.pairing_ip, self.pairing_port = "127.0.0.1", 0
        self.settings = {"api_keepalive_requests": 1000, "api_auth_default": None} | dict(self.settings)
        self.write_conf({})
        self.state.mkdir(parents=True, exist_ok=True)
        with self.store() as store:
            self._populate(store)

    def store(self) -> Store:
        """The database itself."""
        return Store(str(self.state / "tasks.db"))

    def _populate(self, store: Store) -> None:
        root = local_identity(store, "root")
        for name in PEOPLE:
            user = add_user(store, root, User("", name, is_administrator=name == "admin"))
            self.users[name] = user.user_id
            self.tokens[name] = self.token_for(name, store=store)
        for name in ("My awesome project", "Elsewhere"):
            add_project(store, root, Project("", name))
        roles = [Role(PROJECT, role, self.users[role.lower()]) for role in ROLES]
        set_roles(store, root, PROJECT, tuple(roles))
        set_roles(store, root, OTHER_PROJECT, (Role(OTHER_PROJECT, "MANAGER", self.users["stranger"]),))

    def http(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Answer:
        """As a fleet's, on one connection that is kept: hundreds of small requests cost a fifth so."""
        payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        for is_last in (False, True):
            kept = self._connection()
            kept.timeout = timeout_s
            try:
                kept.request(method, path, body=payload, headers=sent)
                answer = kept.getresponse()
                found = Answer(answer.status, answer.read(), dict(answer.headers))
                break
            except (http.client.RemoteDisconnected, ConnectionError):
                # it was idle for too long, or its child has served its number of requests
                self._hang_up()
                if is_last:
                    raise
        if answer.will_close:
            self._hang_up()
        check_answer(method, path, found.status, found.headers, found.body)
        return found

    def _connection(self) -> http.client.HTTPConnection:
        if self.kept is None:
            self.kept = http.client.HTTPConnection("127.0.0.1", self.api_port)
        return self.kept

    def _hang_up(self) -> None:
        if self.kept is not None:
            self.kept.close()
            self.kept = None

    def close(self) -> None:
        """End everything."""
        self._hang_up()
        super().close()

    def identity(self, store: Store, name: str = "admin") -> Identity:
        """A user as the operations see them."""
        return local_identity(store, name)

    def token_for(self, name: str, *, store: Store | None = None, **facts: Any) -> str:
        """A fresh personal access token of a user."""
        draft = Token("", self.users[name], "personal", name=f"of {name}", **facts)
        if store is not None:
            return create_token(store, draft)[1]
        with self.store() as opened:
            return create_token(opened, draft)[1]

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        by: str = "admin",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request with a user's token; an empty `by` sends none, another text is the token itself."""
        token = self.tokens.get(by, by)
        sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        return self.http(method, path, body, headers=sent)

    def create_task(self, by: str = "admin", **changes: Any) -> dict[str, Any]:
        """A task of its own name; gives its document."""
        answer = self.ask("POST", "/api/v1/tasks", a_task(**changes), by=by)
        assert answer.status == 201, answer.body
        return answer.json


def a_task(**changes: Any) -> dict[str, Any]:
    """The least that a task needs, with changes."""
    script = {"script": "hello", "hosts": ["web-01"]}
    name = f"Task {next(_numbers)}"
    return {
        "projectId": PROJECT, "name": name, "taskType": "AGENT_SCRIPT", "agentScriptTask": script,
    } | changes  # fmt: skip


def seed() -> tuple[dict[str, Any], dict[str, Any]]:
    """The seed's request to create a task, and its response: the examples of openapi.json are the same."""
    document = json.loads((ROOT / "openapi.json").read_text())
    operation = document["paths"]["/api/v1/tasks"]["post"]
    request = operation["requestBody"]["content"]["application/json"]["examples"]["example"]["value"]
    return request, operation["responses"]["201"]["content"]["application/json"]["example"]
