"""Every route of the task layer with every kind of credential; generated from the route table."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.api.v1.asking import PUBLIC, TaskRoute
from ctrl_exec.api.v1.table import TASK_ROUTES
from ctrl_exec.tasks.models import ROLES
from ctrl_exec.tasks.people.tokens import revoke_token
from ctrl_exec.tasks.ulid import new_ulid
from tests.support.office import PROJECT, Office, a_task

GUARDED = [route for route in TASK_ROUTES if route.authorised_by != PUBLIC]
ABSENT = (
    "personalAccessTokenId",
    "constantId",
    "secretId",
    "teamId",
    "notifierId",
    "webhookId",
    "executionId",
)
ANYBODY, ADMINISTRATOR = "ANYBODY", "ADMINISTRATOR"
# who may; ANYBODY: with or without a role anywhere. Whoever lacks a role in the project finds nothing there.
LEAST = {
    "cron-preview": ANYBODY, "upcoming": ANYBODY, "task-upcoming": "VIEWER",
    "task-create": "MANAGER", "tasks": ANYBODY, "task": "VIEWER", "task-replace": "MANAGER",
    "task-amend": "MANAGER", "task-remove": "MANAGER", "project-create": ADMINISTRATOR, "projects": ANYBODY,
    "project": "VIEWER", "project-replace": "MANAGER", "project-amend": "MANAGER",
    "project-remove": ADMINISTRATOR, "roles": "MANAGER", "roles-replace": ADMINISTRATOR, "profile": ANYBODY,
    "user-create": ADMINISTRATOR, "users": ADMINISTRATOR, "user": ADMINISTRATOR, "user-amend": ADMINISTRATOR,
    "user-remove": ADMINISTRATOR, "token-create": ANYBODY, "tokens": ANYBODY, "token-revoke": ANYBODY,
    "constants": "VIEWER", "constant-create": "MANAGER", "constant-amend": "MANAGER",
    "constant-remove": "MANAGER", "secrets": "MANAGER", "secret-create": "MANAGER",
    "secret-replace": "MANAGER", "secret-remove": "MANAGER", "team-create": ADMINISTRATOR,
    "teams": ADMINISTRATOR, "team": ADMINISTRATOR, "team-amend": ADMINISTRATOR, "team-remove": ADMINISTRATOR,
    "audit": ADMINISTRATOR, "notifier-create": "MANAGER", "notifiers": ANYBODY, "notifier": "VIEWER",
    "notifier-amend": "MANAGER", "notifier-remove": "MANAGER", "notifier-test": "MANAGER", "webhook-create": "MANAGER",
    "webhooks": ANYBODY, "webhook": "MANAGER", "webhook-amend": "MANAGER", "webhook-remove": "MANAGER",
    "execution-create": "EXECUTOR", "executions": ANYBODY,
    "execution": "VIEWER", "execution-remove": "MANAGER", "execution-log": "ADVANCED_EXECUTOR",
    "export": "MANAGER", "import": ADMINISTRATOR, "execution-abort": "EXECUTOR", "execution-retry": "EXECUTOR",
    "execution-approve": "VIEWER", "execution-reject": "VIEWER",
}  # fmt: skip
# what does not change anything even when it is allowed: it names what is not there, or leaves all as it is
BODIES: dict[str, Any] = {
    "cron-preview": {"cronExpression": ""}, "task-create": a_task(name=""), "task-replace": a_task(name=""), "task-amend": {"name": ""},
    "project-create": {"name": ""}, "project-replace": {"name": ""}, "project-amend": {"name": ""},
    "roles-replace": {"items": [{}]}, "user-create": {"name": ""}, "user-amend": {"name": ""},
    "token-create": {"name": ""}, "constant-create": {"name": ""}, "constant-amend": {"name": ""},
    "secret-create": {"name": ""}, "secret-replace": {"name": ""}, "team-create": {"name": ""},
    "team-amend": {"name": ""}, "notifier-create": {"name": ""}, "notifier-amend": {"name": ""},
    "webhook-create": {"name": ""}, "webhook-amend": {"name": ""},
    "execution-create": {"taskId": ""}, "execution-approve": {}, "execution-reject": {}, "import": {"version": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def task(office: Office) -> dict[str, Any]:
    return office.create_task()


@pytest.fixture(scope="module")
def dead(office: Office) -> dict[str, str]:
    """Tokens that were good once."""
    with office.store() as store:
        expired = office.token_for("admin", store=store, expires_ns=store.clock_ns() - 1)
        revoked = office.token_for("admin", store=store)
        row = store.row("SELECT token_id FROM tokens ORDER BY token_id DESC LIMIT 1")
        assert row is not None
        revoke_token(store, row[0])
    return {"expired": expired, "revoked": revoked, "unknown": "ctpat_" + "A" * 43 + "=", "odd": "x"}


def path_of(office: Office, route: TaskRoute, task: dict[str, Any]) -> str:
    known = {
        "projectId": PROJECT, "taskId": task["taskId"], "userId": office.users["viewer"],
        "personalAccessTokenId": new_ulid(1), "constantId": new_ulid(1), "secretId": new_ulid(1),
        "teamId": new_ulid(1), "notifierId": new_ulid(1), "webhookId": new_ulid(1),
        "executionId": new_ulid(1),
    }  # fmt: skip
    return route.pattern.format(**known)


def expected(route: TaskRoute, who: str) -> tuple[int, ...]:
    """The statuses that this user may get: what is allowed fails at most by the body's fault."""
    least = LEAST[route.name]
    # what these name is not there
    names_nothing = any(f"{{{each}}}" in route.pattern for each in ABSENT)
    fine = (404,) if names_nothing else (200, 400)
    if who == "admin" or least == ANYBODY:
        return fine
    if least == ADMINISTRATOR:
        return (403,)
    is_named = "{" in route.pattern
    if who in ("stranger", "nobody"):
        # where the project is named by the body, the body is judged first
        return (404,) if is_named else (400,)
    if ROLES.index(who.upper()) <= ROLES.index(least):
        return fine
    if names_nothing:
        return (403, 404)
    return (403,) if is_named else (400,)


def test_the_table_says_of_every_route_who_may() -> None:
    assert set(LEAST) == {route.name for route in GUARDED}
    assert set(BODIES) == {route.name for route in GUARDED if route.keys}


@pytest.mark.parametrize("route", GUARDED, ids=lambda route: route.name)
def test_every_route_asks_who_it_is(
    office: Office, dead: dict[str, str], task: Any, route: TaskRoute
) -> None:
    path, body = path_of(office, route, task), BODIES.get(route.name)
    for name, token in {"none": "", **dead}.items():
        answer = office.ask(route.method, path, body, by=token)
        assert answer.status == 401, name
        assert answer.json["error"] == "unauthorized"
        challenge = answer.headers["WWW-Authenticate"]
        assert ("invalid_token" in challenge) is (name != "none")


@pytest.mark.parametrize("route", GUARDED, ids=lambda route: route.name)
def test_every_role_may_what_it_may(office: Office, task: Any, route: TaskRoute) -> None:
    path, body = path_of(office, route, task), BODIES.get(route.name)
    for who in ("viewer", "executor", "advanced_executor", "manager", "stranger", "nobody"):
        if LEAST[route.name] == "MANAGER" and route.method == "DELETE" and who == "manager":
            continue
        status = office.ask(route.method, path, body, by=who).status
        assert status in expected(route, who), (route.name, who, status)
    if route.method not in ("DELETE",):
        status = office.ask(route.method, path, body).status
        assert status in expected(route, "admin"), (route.name, status)


@pytest.mark.parametrize("route", GUARDED, ids=lambda route: route.name)
def test_a_token_is_for_its_scopes_and_projects_only(office: Office, task: Any, route: TaskRoute) -> None:
    others = [scope for scope in ("read", "execute", "write", "admin") if scope != route.scope]
    narrow = office.token_for("admin", scopes=tuple(others))
    path, body = path_of(office, route, task), BODIES.get(route.name)
    answer = office.ask(route.method, path, body, by=narrow)
    assert (answer.status, answer.json.get("code")) == (403, 3)
    assert route.scope in str(answer.json["detail"])
    elsewhere = office.token_for("admin", project_ids=("elsewhere",))
    answer = office.ask(route.method, path, body, by=elsewhere)
    if LEAST[route.name] == ADMINISTRATOR or route.name == "tokens":
        assert answer.status == 403
    elif "{projectId}" in route.pattern or "{taskId}" in route.pattern:
        assert answer.status == 404
    else:
        assert answer.status in (200, 400, 404)


def test_bodies_with_rights_too_low_change_nothing(office: Office, task: dict[str, Any]) -> None:
    """Good bodies this time, so that nothing but the rights can refuse them."""
    path = f"/api/v1/tasks/{task['taskId']}"
    for who, status in (
        ("viewer", 403),
        ("executor", 403),
        ("advanced_executor", 403),
        ("stranger", 404),
        ("nobody", 404),
    ):
        assert office.ask("POST", "/api/v1/tasks", a_task(), by=who).status == status, who
        assert office.ask("PATCH", path, {"description": "mine"}, by=who).status == status, who
        assert office.ask("DELETE", path, by=who).status == status, who
        assert (
            office.ask("PATCH", f"/api/v1/projects/{PROJECT}", {"description": "x"}, by=who).status == status
        )
    assert office.ask("GET", path).json == task


def test_a_manager_edits_but_only_an_administrator_makes_local_commands(office: Office) -> None:
    mine = office.create_task(by="manager")
    assert mine["userId"] == office.users["manager"]
    local: dict[str, Any] = {
        "taskType": "LOCAL_COMMAND",
        "agentScriptTask": None,
        "localCommandTask": {"program": "ip"},
    }
    assert office.ask("POST", "/api/v1/tasks", a_task(**local), by="manager").status == 403
    path = f"/api/v1/tasks/{mine['taskId']}"
    assert office.ask("PATCH", path, local, by="manager").status == 403
    assert office.ask("GET", path).json == mine
    theirs = office.create_task(**local)
    path = f"/api/v1/tasks/{theirs['taskId']}"
    assert office.ask("PATCH", path, {"description": "mine now"}, by="manager").status == 403
    assert office.ask("DELETE", path, by="manager").status == 403
    assert office.ask("GET", path, by="manager").json == theirs


def test_lists_show_what_one_may_see(office: Office, task: dict[str, Any]) -> None:
    def ids(path: str, by: str, key: str) -> list[str]:
        items = office.ask("GET", path, by=by).json["items"]
        assert isinstance(items, list)
        return [each[key] for each in items]

    assert PROJECT in ids("/api/v1/projects", "viewer", "projectId")
    assert ids("/api/v1/projects", "stranger", "projectId") == ["elsewhere"]
    assert ids("/api/v1/projects", "nobody", "projectId") == []
    assert task["taskId"] in ids("/api/v1/tasks?limit=500", "viewer", "taskId")
    assert task["taskId"] not in ids("/api/v1/tasks?limit=500", "stranger", "taskId")
    assert office.ask("GET", f"/api/v1/tasks?projectId={PROJECT}", by="stranger").status == 404
    assert ids("/api/v1/tasks", "nobody", "taskId") == []


def test_what_is_not_there_is_for_those_who_may_ask(office: Office) -> None:
    for method, path in (("GET", "/api/v1/nothing"), ("PUT", "/api/v1/tasks"), ("OPTIONS", "/api/v1/tasks")):
        assert office.ask(method, path, by="").status == 401, (method, path)
    assert office.ask("GET", "/api/v1/nothing").status == 404
    assert office.ask("PUT", "/api/v1/tasks", {}).headers["Allow"] == "GET, HEAD, OPTIONS, POST"
    assert office.ask("OPTIONS", "/api/v1/tasks").status == 204


def test_a_user_who_is_off_is_out(office: Office) -> None:
    made = office.ask("POST", "/api/v1/users", {"name": "leaver", "password": "long enough"})
    assert made.status == 201
    office.users["leaver"] = str(made.json["userId"])
    token = office.token_for("leaver")
    assert office.ask("GET", "/api/v1/profile", by=token).json["name"] == "leaver"
    path = f"/api/v1/users/{office.users['leaver']}"
    assert office.ask("PATCH", path, {"enabledFg": False}).json["enabledFg"] is False
    assert office.ask("GET", "/api/v1/profile", by=token).status == 401
    assert office.ask("DELETE", path).status == 204
    assert office.ask("GET", path).status == 404


def test_the_last_administrator_stays(office: Office) -> None:
    path = f"/api/v1/users/{office.users['admin']}"
    for change in ({"enabledFg": False}, {"administratorFg": False}):
        assert office.ask("PATCH", path, change).status == 409
    assert office.ask("DELETE", path).status == 409


def test_a_token_is_shown_once_and_never_makes_a_stronger_one(office: Office) -> None:
    narrow = office.token_for("manager", scopes=("read", "write"), project_ids=(PROJECT,))
    made = office.ask("POST", "/api/v1/personal-access-tokens", {"name": "mine"}, by=narrow)
    assert made.status == 201
    assert set(made.json) == {"personalAccessTokenId", "name", "creationTs", "expirationTs", "token"}
    value = str(made.json["token"])
    listed = office.ask("GET", "/api/v1/personal-access-tokens", by="manager")
    assert value not in listed.body.decode()
    items = {each["personalAccessTokenId"]: each for each in listed.json["items"]}  # type: ignore[attr-defined]
    mine = items[made.json["personalAccessTokenId"]]
    assert (mine["scopes"], mine["projectIds"], mine["lastUsedTs"]) == (["read", "write"], [PROJECT], None)
    more = {"name": "more", "scopes": ["admin"]}
    assert office.ask("POST", "/api/v1/personal-access-tokens", more, by=value).status == 403
    elsewhere = {"name": "more", "projectIds": ["elsewhere"]}
    assert office.ask("POST", "/api/v1/personal-access-tokens", elsewhere, by=value).status == 404
    for body in (
        {},
        {"name": "a", "expirationTs": 1},
        {"name": "a", "scopes": ["all"]},
        {"name": "a", "zap": 1},
    ):
        assert office.ask("POST", "/api/v1/personal-access-tokens", body).status == 400
    path = f"/api/v1/personal-access-tokens/{made.json['personalAccessTokenId']}"
    assert office.ask("DELETE", path, by="viewer").status == 404
    assert office.ask("DELETE", path, by="manager").status == 204
    assert office.ask("GET", "/api/v1/profile", by=value).status == 401
    assert office.ask("DELETE", path, by="manager").status == 404


def test_a_token_never_makes_one_that_outlives_it(office: Office) -> None:
    """Nor does what the token endpoint gave for it."""
    with office.store() as store:
        ends_ns = store.clock_ns() + 86_400 * 10**9
    wanted = {"name": "short", "expirationTs": ends_ns}
    short = office.ask("POST", "/api/v1/personal-access-tokens", wanted, by="manager").json
    credentials = {"client_id": short["personalAccessTokenId"], "client_secret": short["token"]}
    form = urllib.parse.urlencode({"grant_type": "client_credentials", **credentials})
    access = office.http("POST", "/oauth/token", form.encode()).json["access_token"]
    for by in (short["token"], access):
        for asked in (None, ends_ns + 10**9, ends_ns - 10**9):
            body = {"name": "x", "expirationTs": asked}
            made = office.ask("POST", "/api/v1/personal-access-tokens", body, by=str(by))
            assert made.status == 201
            assert made.json["expirationTs"] == min(ends_ns, asked or ends_ns)


def test_only_a_bearer_token_counts(office: Office) -> None:
    basic = {"Authorization": "Basic YWRtaW46eA=="}
    assert office.ask("GET", "/api/v1/profile", by="", headers=basic).status == 400
    body = {"name": "a", "token": office.tokens["admin"]}
    assert office.ask("POST", "/api/v1/projects", body, by="").status == 401
    # a web page of elsewhere asks in vain, whatever it brings
    foreign = {"Origin": "https://evil.example"}
    assert office.ask("GET", "/api/v1/profile", headers=foreign).status == 403


def test_the_auth_hook_has_a_say_too(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    hook = tmp_path / "hook"
    hook.write_text(
        f'#!/bin/sh\ncat >> {asked}\necho >> {asked}\n[ "$ENVEXEC_USERNAME" != viewer ] || exit 3\nexit 0\n'
    )
    hook.chmod(0o755)
    office = Office(tmp_path / "office", {"auth_hook": hook})
    try:
        office.start_api()
        assert office.ask("GET", "/api/v1/profile").status == 200
        refused = office.ask("GET", "/api/v1/profile", by="viewer")
        assert (refused.status, refused.json["code"]) == (403, 3)
    finally:
        office.close()
    questions = [json.loads(line) for line in asked.read_text().splitlines() if line]
    assert {(each["action"], each["auth"], each["token"]) for each in questions} == {("task", "token", "")}
    assert [each["username"] for each in questions] == ["admin", "viewer"]
    log = (office.home / "api.log").read_text()
    assert not any(token in log for token in office.tokens.values())
