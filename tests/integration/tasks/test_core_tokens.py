"""Tokens of the task layer on the routes of the core: `api_auth_default = token`, and beside a hook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.api.routes import PUBLIC, ROUTES, ApiRoute
from ctrl_exec.common.clock import epoch_now
from ctrl_exec.services.records import new_record
from ctrl_exec.services.results import ResultStore
from ctrl_exec.tasks.people.identity import OF_A_TASK
from tests.support.office import PROJECT, Office

KNOWN = {"hosts": ["nobody"], "script": "hello", "code": "123456"}
# what managers of any project may as well as administrators
OF_MANAGERS = ("ping", "run", "discovery", "discovery-of")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    office = Office(
        tmp_path_factory.mktemp("tokens"), {"api_auth_default": "token", "pairing_api_approve": "yes"}
    )
    try:
        office.start_api()
        yield office
    finally:
        office.close()


def path_of(route: ApiRoute) -> str:
    path = route.pattern
    for name in ("{reqid}", "{id}"):
        path = path.replace(name, "a1b2c3d4e5f60718")
    return path


def body_of(route: ApiRoute) -> object:
    found = {key: KNOWN[key] for key in route.keys if key in KNOWN}
    return found if route.method == "POST" else None


@pytest.mark.parametrize(
    "route", [each for each in ROUTES if each.authorised_by != PUBLIC], ids=lambda route: route.name
)
def test_the_core_asks_for_a_token_whose_role_permits_it(guarded: Office, route: ApiRoute) -> None:
    def status(by: str) -> int:
        return guarded.ask(route.method, path_of(route), body_of(route), by=by).status

    assert status("") == 401
    assert status("ctpat_" + "A" * 43 + "=") == 401
    assert status("no-token-of-ours") == 401
    assert status("admin") not in (401, 403)
    is_open = route.authorised_by == "api"
    hides = "{reqid}" in route.pattern  # a run that one may not see does not exist
    refused = (404,) if hides else (403,)
    for who in ("viewer", "executor", "advanced_executor", "nobody"):
        assert (status(who) == 200) if is_open else (status(who) in refused), who
    if route.name in OF_MANAGERS or is_open:
        assert status("manager") not in (401, 403)
        assert status("stranger") not in (401, 403)
    else:
        assert status("manager") in refused


def test_a_scope_is_needed_too(guarded: Office) -> None:
    reader = guarded.token_for("admin", scopes=("read",))
    assert guarded.ask("GET", "/health", by=reader).status == 200
    body = {"hosts": ["nobody"], "script": "hello"}
    refused = guarded.ask("POST", "/run", body, by=reader)
    assert (refused.status, refused.json["code"]) == (403, 3)
    runner = guarded.token_for("admin", scopes=("run",))
    assert guarded.ask("POST", "/run", body, by=runner).status == 404
    assert guarded.ask("GET", "/health", by=runner).status == 403


CORE = [each for each in ROUTES if each.authorised_by not in (PUBLIC, "api")]


@pytest.mark.parametrize("route", CORE, ids=lambda route: route.name)
def test_a_token_limited_to_projects_does_not_reach_the_core(guarded: Office, route: ApiRoute) -> None:
    """Neither a manager's nor an administrator's: the core knows no projects to hold it to."""
    refused = (403, 404) if "{reqid}" in route.pattern else (403,)
    for who in ("manager", "admin"):
        limited = guarded.token_for(who, project_ids=(PROJECT,))
        answer = guarded.ask(route.method, path_of(route), body_of(route), by=limited)
        assert answer.status in refused, (who, answer.body)
        assert guarded.ask("GET", "/health", by=limited).status == 200
        assert guarded.ask("GET", "/api/v1/tasks", by=limited).status == 200


def test_a_manager_sees_runs_of_their_own_and_no_others(guarded: Office) -> None:
    """An administrator sees all; a limited token of the manager not even their own."""
    record = new_record("a1b2c3d4e5f60719", "hello", (), created=epoch_now(), submitter="manager")
    ResultStore(str(guarded.state / "runs")).begin(record).finish("completed")
    path = "/status/a1b2c3d4e5f60719"
    for who, status in (("manager", 200), ("admin", 200), ("stranger", 404), ("viewer", 404)):
        assert guarded.ask("GET", path, by=who).status == status, who
    limited = guarded.token_for("manager", project_ids=(PROJECT,))
    assert guarded.ask("GET", path, by=limited).status == 404
    assert guarded.ask("POST", "/runs/a1b2c3d4e5f60719/cancel", by=limited).status == 404


def test_the_run_of_a_task_is_an_administrators_to_see(guarded: Office) -> None:
    """Whoever starts a task may be one who may not read its log, and its script may print a secret."""
    record = new_record(
        "a1b2c3d4e5f60729", "hello", (), created=epoch_now(), submitter="manager", submitter_ip=OF_A_TASK
    )
    ResultStore(str(guarded.state / "runs")).begin(record).finish("completed")
    for what in ("/status/a1b2c3d4e5f60729", "/runs/a1b2c3d4e5f60729/output"):
        assert guarded.ask("GET", what, by="admin").status == 200
        assert guarded.ask("GET", what, by="manager").status == 404
    assert guarded.ask("POST", "/runs/a1b2c3d4e5f60729/cancel", by="manager").status == 404


def test_a_hook_does_not_lift_a_tokens_limits(tmp_path: Path) -> None:
    """It says what the user may; what their token was made for is less, and stays so."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\nexit 0\n")
    hook.chmod(0o755)
    office = Office(tmp_path / "office", {"auth_hook": hook})
    body = {"hosts": ["nobody"], "script": "hello"}
    try:
        office.start_api()
        for facts in ({"scopes": ("read",)}, {"project_ids": (PROJECT,)}):
            limited = office.token_for("admin", **facts)
            assert office.ask("POST", "/run", body, by=limited).status == 403
            assert not (tmp_path / "asked").exists()
        assert office.ask("POST", "/run", body, by=office.token_for("viewer", scopes=("run",))).status == 404
        reader = office.token_for("viewer", project_ids=(PROJECT,))
        assert office.ask("GET", "/health", by=reader).status == 200
        # one after the other on one connection: the limits of the one before are not those of the next
        assert (
            office.ask("GET", "/api/v1/tasks", by=office.token_for("viewer", scopes=("read",))).status == 200
        )
        assert office.ask("POST", "/run", body, by="").status == 404
    finally:
        office.close()


def test_a_token_in_the_body_counts_and_another_name_does_not(guarded: Office) -> None:
    body: dict[str, object] = {"hosts": ["nobody"], "script": "hello", "token": guarded.tokens["admin"]}
    assert guarded.ask("POST", "/run", body, by="").status == 404
    assert guarded.ask("POST", "/run", body | {"username": "ADMIN"}, by="").status == 404
    assert guarded.ask("POST", "/run", body | {"username": "viewer"}, by="").status == 400
    assert guarded.ask("GET", "/nowhere", by="").status == 401
    assert guarded.ask("GET", "/nowhere").status == 404


def test_a_hook_is_asked_with_the_proven_name_and_no_token(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat >> {asked}\necho >> {asked}\nexit 0\n")
    hook.chmod(0o755)
    office = Office(tmp_path / "office", {"auth_hook": hook})
    try:
        office.start_api()
        assert office.ask("GET", "/health", by="viewer").status == 200
        assert office.ask("GET", "/health", by="ctpat_unknown").status == 401
        assert office.ask("GET", "/health", by="its-own-kind").status == 200
    finally:
        office.close()
    questions = [json.loads(line) for line in asked.read_text().splitlines() if line]
    found = [(each["username"], each["token"], each["auth"]) for each in questions]
    assert found == [("viewer", "", "token"), ("", "its-own-kind", "none")]
