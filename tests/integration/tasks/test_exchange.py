"""A project goes out as one document and comes in again without loss, checked like any other write."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.office import Office


@pytest.fixture(scope="module")
def exported(office: Office) -> dict[str, Any]:
    """A project with everything a project can have."""
    project = office.ask(
        "POST", "/api/v1/projects", {"name": "Before", "timeout": 3, "timeoutDurationUnit": "HOUR"}
    )
    path, project_id = project.headers["Location"], project.json["projectId"]
    office.ask("PATCH", path, {"name": "After", "description": "# Much\nof *it*"})
    office.ask("POST", f"{path}/constants", {"name": "REGION", "value": "eu"})
    office.ask("POST", f"{path}/secrets", {"name": "DB_PASSWORD", "value": "neverleaves"})
    body = {
        "projectId": project_id,
        "name": "Chat",
        "kind": "SLACK",
        "secret": "https://chat.example/neverleaves",
    }
    notifier = office.ask("POST", "/api/v1/notifiers", body).json["notifierId"]
    step = office.create_task(
        projectId=project_id, name="Step", scheduledFg=True, cronExpression="@daily", cronTimezone="Europe/Berlin",
        parameters=[{"name": "P", "type": "INTEGER", "min": 1, "defaultValue": 2}],
        agentScriptTask={"script": "hello", "hosts": ["@all"], "args": ["{{REGION}}", "{{P}}"]},
        taskNotifierMap={notifier: {"events": ["ON_FAILURE"], "afterFailures": 2}},
    )  # fmt: skip
    flow = {"steps": [{"taskId": step["taskId"], "parameterMap": {"P": 7}, "onFailure": "CONTINUE"}]}
    office.create_task(
        projectId=project_id, name="Flow", taskType="WORKFLOW", agentScriptTask=None, workflowTask=flow
    )
    hook = {
        "taskId": step["taskId"],
        "name": "Push",
        "secret": "neverleavesneverleaves",
        "parameterMapping": {"P": "n"},
    }
    office.ask("POST", "/api/v1/webhooks", hook)
    found = office.ask("GET", f"{path}/export")
    assert found.status == 200
    assert "neverleaves" not in found.body.decode()
    assert [len(found.json[key]) for key in ("constants", "secrets", "notifiers", "tasks", "webhooks")] == [
        1,
        1,
        1,
        2,
        1,
    ]  # type: ignore[arg-type]
    return found.json


def test_into_an_empty_instance_and_out_again_it_is_equal(exported: dict[str, Any], tmp_path: Path) -> None:
    other = Office(tmp_path / "other")
    try:
        other.start_api()
        made = other.ask("POST", "/api/v1/imports", exported)
        assert made.status == 201, made.body
        assert made.json["secretsToSet"] == {
            "secrets": ["DB_PASSWORD"], "notifiers": ["Chat"], "webhooks": ["Push"],
        }  # fmt: skip
        again = other.ask("GET", f"{made.headers['Location']}/export")
        assert again.json == exported
        hook = exported["webhooks"][0]["webhookId"]
        assert (
            other.http("POST", f"/hooks/{hook}", {"n": 3}, headers={"Authorization": "Bearer "}).status == 401
        )
        listed = other.cli("--json", "project", "export", exported["project"]["projectId"])
        assert json.loads(listed.stdout) == exported
    finally:
        other.close()


def test_beside_the_original_it_has_ids_of_its_own(office: Office, exported: dict[str, Any]) -> None:
    made = office.ask("POST", "/api/v1/imports", exported)
    assert made.status == 201, made.body
    path = made.headers["Location"]
    twin = office.ask("GET", f"{path}/export").json
    assert twin["project"]["projectId"] == exported["project"]["projectId"] + "-2"  # type: ignore[index]
    old, new = json.dumps(exported), json.dumps(twin)
    for kind, key in (("tasks", "taskId"), ("notifiers", "notifierId"), ("webhooks", "webhookId")):
        for before, after in zip(exported[kind], twin[kind], strict=True):  # type: ignore[call-overload]
            assert before[key] not in new
            assert after[key] not in old
    steps = {each["name"]: each for each in twin["tasks"]}  # type: ignore[attr-defined]
    assert steps["Flow"]["workflowTask"]["steps"][0]["taskId"] == steps["Step"]["taskId"]
    assert office.ask("DELETE", path).status == 204


@pytest.mark.parametrize(
    ("field", "place", "content"),
    [
        ("version", ("version",), 2),
        ("zap", ("zap",), 1),
        ("project.name", ("project", "name"), ""),
        ("constants[0].name", ("constants", 0, "name"), "lower"),
        ("secrets[0].name", ("secrets", 0, "name"), "lower"),
        ("secrets[0].value", ("secrets", 0, "value"), "x"),
        ("notifiers[0].kind", ("notifiers", 0, "kind"), "MAGIC"),
        ("notifiers[0].name", ("notifiers", 0, "name"), None),
        ("notifiers[0].settings", ("notifiers", 0, "settings"), None),
        ("webhooks[0].taskId", ("webhooks", 0, "taskId"), None),
        ("tasks[0].taskId", ("tasks", 0, "taskId"), "x"),
        ("tasks[0].cronExpression", ("tasks", 0, "cronExpression"), "61 * * * *"),
        ("tasks[0].parameters[0].type", ("tasks", 0, "parameters", 0, "type"), "MAGIC"),
        ("tasks[0].agentScriptTask.args[0]", ("tasks", 0, "agentScriptTask", "args"), ["{{NOPE}}"]),
        (
            "tasks[1].workflowTask.steps[0].parameterMap.P",
            ("tasks", 1, "workflowTask", "steps", 0, "parameterMap"),
            {"P": "7"},
        ),
        ("webhooks[0].parameterMapping.NOPE", ("webhooks", 0, "parameterMapping"), {"NOPE": "a"}),
    ],
)
def test_one_fault_and_nothing_is_made(
    office: Office, exported: dict[str, Any], field: str, place: tuple[Any, ...], content: object
) -> None:
    damaged = copy.deepcopy(exported)
    inner: Any = damaged
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = content
    before = office.ask("GET", "/api/v1/projects?limit=500").json["items"]
    refused = office.ask("POST", "/api/v1/imports", damaged)
    assert refused.status == 400, refused.body
    assert field in refused.json["fields"]  # type: ignore[operator]
    assert office.ask("GET", "/api/v1/projects?limit=500").json["items"] == before


def test_an_id_comes_once(office: Office, exported: dict[str, Any]) -> None:
    doubled = exported | {"tasks": [exported["tasks"][0], exported["tasks"][0]]}
    refused = office.ask("POST", "/api/v1/imports", doubled)
    assert list(refused.json["fields"]) == ["tasks[1].taskId"]  # type: ignore[call-overload]


def test_only_administrators_take_projects_in(office: Office, exported: dict[str, Any]) -> None:
    assert office.ask("POST", "/api/v1/imports", exported, by="manager").status == 403
    path = f"/api/v1/projects/{exported['project']['projectId']}/export"
    assert office.ask("GET", path, by="manager").status == 404
