"""Projects, their constants and secrets, teams, and the audit log that tells of all of it."""

from __future__ import annotations

from typing import Any

from tests.support.office import PROJECT, Office


def test_a_projects_id_is_the_slug_of_its_first_name(office: Office) -> None:
    made = office.ask(
        "POST", "/api/v1/projects", {"name": "Über Größe: 2!", "timeout": 5, "timeoutDurationUnit": "DAY"}
    )
    assert made.status == 201
    assert made.json["projectId"] == "uber-groe-2"
    path = made.headers["Location"]
    again = office.ask("POST", "/api/v1/projects", {"name": "Über Größe: 2!"})
    assert again.json["projectId"] == "uber-groe-2-2"
    renamed = office.ask("PATCH", path, {"name": "Other", "timeout": None, "timeoutDurationUnit": None})
    assert renamed.json | {"updateTs": 0} == made.json | {
        "name": "Other", "timeout": None, "timeoutDurationUnit": None, "updateTs": 0,
    }  # fmt: skip
    replaced = office.ask("PUT", path, {"name": "Whole", "projectId": made.json["projectId"]})
    assert (replaced.json["name"], replaced.json["projectId"]) == ("Whole", "uber-groe-2")
    for body in (
        {"name": ""},
        {},
        {"name": "a", "zap": 1},
        {"name": "a", "projectId": "b"},
        {"name": "a", "timeout": 1},
    ):
        assert office.ask("PUT", path, body).status == 400, body
    assert office.ask("DELETE", path).status == 204
    assert office.ask("GET", path).status == 404
    office.ask("DELETE", again.headers["Location"])


def test_a_project_goes_with_all_it_has_unless_something_runs(office: Office) -> None:
    from ctrl_exec.tasks.execution.executions import Start, request_execution, transition

    project = office.ask("POST", "/api/v1/projects", {"name": "Going"}).json["projectId"]
    task = office.create_task(projectId=project)
    with office.store() as store:
        started = request_execution(store, Start(task["taskId"]))
        assert office.ask("DELETE", f"/api/v1/projects/{project}").status == 409
        assert office.ask("DELETE", f"/api/v1/tasks/{task['taskId']}").status == 409
        transition(store, started.execution_id, ("PENDING",), "ABORTED")
    assert office.ask("DELETE", f"/api/v1/projects/{project}").status == 204
    assert office.ask("GET", f"/api/v1/tasks/{task['taskId']}").status == 404


def test_roles_are_given_to_users_and_teams(office: Office) -> None:
    project = office.ask("POST", "/api/v1/projects", {"name": "Shared"}).json["projectId"]
    path, roles = f"/api/v1/projects/{project}", f"/api/v1/projects/{project}/roles"
    team = office.ask("POST", "/api/v1/teams", {"name": "Night shift", "userIds": [office.users["nobody"]]})
    assert team.status == 201
    team_id = team.json["teamId"]
    assert office.ask("GET", path, by="nobody").status == 404
    given = {"items": [{"teamId": team_id, "role": "VIEWER"}]}
    assert office.ask("PUT", roles, given).json == given
    assert office.ask("GET", path, by="nobody").status == 200
    assert office.ask("GET", roles, by="nobody").status == 403
    # of several roles the strongest counts
    both = {"items": [*given["items"], {"userId": office.users["nobody"], "role": "MANAGER"}]}
    assert office.ask("PUT", roles, both).status == 200
    assert office.ask("PATCH", path, {"description": "mine"}, by="nobody").status == 200
    renamed = office.ask("PATCH", f"/api/v1/teams/{team_id}", {"name": "Day shift", "userIds": []})
    assert (renamed.json["name"], renamed.json["userIds"]) == ("Day shift", [])
    assert office.ask("GET", f"/api/v1/teams/{team_id}").json == renamed.json
    assert office.ask("GET", "/api/v1/teams").json["items"] == [renamed.json]
    assert office.ask("PUT", roles, given).status == 200
    assert office.ask("GET", path, by="nobody").status == 404
    assert office.ask("POST", "/api/v1/teams", {"name": "DAY SHIFT"}).status == 409
    assert office.ask("PATCH", f"/api/v1/teams/{team_id}", {"userIds": ["x"]}).status == 404
    nothing: list[Any] = [{"role": "VIEWER"}, {"userId": office.users["nobody"], "role": "KING"}]
    for item in nothing:
        assert office.ask("PUT", roles, {"items": [item]}).status == 400, item
    unknown = {"userId": "01J8ZWXQ1572KC6XGE7T74PT4P", "role": "VIEWER"}
    assert office.ask("PUT", roles, {"items": [unknown]}).status == 404
    assert office.ask("PUT", roles, {"items": [unknown, unknown]}).status == 400
    assert office.ask("GET", roles).json == given
    assert office.ask("DELETE", f"/api/v1/teams/{team_id}").status == 204
    assert office.ask("GET", roles).json == {"items": []}
    assert office.ask("DELETE", path).status == 204


def test_constants_are_what_templates_may_name(office: Office) -> None:
    path = f"/api/v1/projects/{PROJECT}/constants"
    script = {"script": "hello", "hosts": ["web-01"], "args": ["--in={{REGION}}"]}
    made = office.ask("POST", path, {"name": "REGION", "value": "eu"}, by="manager")
    assert made.status == 201
    assert office.ask("POST", path, {"name": "REGION", "value": "us"}).status == 409
    task = office.create_task(agentScriptTask=script)
    one = made.headers["Location"]
    assert office.ask("PATCH", one, {"value": ""}).json["value"] == ""
    assert office.ask("DELETE", one).status == 409
    assert office.ask("GET", path, by="viewer").json["items"][0]["name"] == "REGION"  # type: ignore[index]
    for body in (
        {"name": "region", "value": ""},
        {"name": "A"},
        {"name": "A", "value": 1},
        {"name": "A", "value": "\x00"},
    ):
        assert office.ask("POST", path, body).status == 400, body
    assert office.ask("DELETE", f"/api/v1/tasks/{task['taskId']}").status == 204
    assert office.ask("DELETE", one).status == 204
    assert office.ask("DELETE", one).status == 404


def test_a_secret_is_written_and_never_shown(office: Office) -> None:
    from ctrl_exec.tasks.project_secrets import load_secrets
    from ctrl_exec.tasks.sealing import Sealer

    path = f"/api/v1/projects/{PROJECT}/secrets"
    made = office.ask("POST", path, {"name": "DB_PASSWORD", "value": "hunter2hunter2"}, by="manager")
    assert made.status == 201
    assert set(made.json) == {"secretId", "creationTs", "updateTs", "projectId", "name"}
    assert office.ask("POST", path, {"name": "DB_PASSWORD", "value": "x"}).status == 409
    one = made.headers["Location"]
    changed = office.ask("PATCH", one, {"value": "hunter3hunter3"})
    assert changed.json["creationTs"] == made.json["creationTs"]
    assert office.ask("PATCH", one, {"name": "OTHER"}).status == 400
    sealer = Sealer(str(office.home / "etc" / "secrets.key"))
    with office.store() as store:
        assert load_secrets(store, sealer, PROJECT) == {"DB_PASSWORD": "hunter3hunter3"}
    rotated = office.cli("secrets", "rotate")
    assert rotated.returncode == 0, rotated.stderr
    with office.store() as store:
        assert load_secrets(store, Sealer(sealer.path), PROJECT) == {"DB_PASSWORD": "hunter3hunter3"}
    told = office.ask("GET", f"/api/v1/audit?objectId={made.json['secretId']}")
    assert office.ask("DELETE", one).status == 204
    shown = told.body + office.ask("GET", path).body + (office.home / "api.log").read_bytes()
    raw = b"".join(each.read_bytes() for each in office.state.glob("tasks.db*"))
    for secret in (b"hunter2hunter2", b"hunter3hunter3"):
        assert secret not in shown
        assert secret not in raw


def test_the_audit_log_says_who_did_what(office: Office) -> None:
    task = office.create_task(by="manager")
    path = f"/api/v1/tasks/{task['taskId']}"
    office.ask("PATCH", path, {"description": "new"})
    office.ask("DELETE", path, by="manager")
    told = office.ask("GET", f"/api/v1/audit?objectId={task['taskId']}&limit=2")
    items = told.json["items"]
    assert isinstance(items, list)
    assert [(each["action"], each["username"], each["sourceIp"]) for each in items] == [
        ("delete", "manager", "127.0.0.1"), ("update", "admin", "127.0.0.1"),
    ]  # fmt: skip
    assert items[1]["before"]["description"] == ""
    assert items[1]["after"]["description"] == "new"
    rest = office.ask(
        "GET", f"/api/v1/audit?objectId={task['taskId']}&cursor={told.json['nextCursor']}"
    ).json["items"]
    assert [each["action"] for each in rest] == ["create"]  # type: ignore[attr-defined]
    assert office.ask("GET", f"/api/v1/audit?projectId={PROJECT}&action=delete", by="manager").status == 200
    assert office.ask("GET", f"/api/v1/audit?projectId={PROJECT}", by="viewer").status == 403
    assert office.ask("GET", f"/api/v1/audit?projectId={PROJECT}", by="stranger").status == 404
    assert office.ask("GET", "/api/v1/audit?zap=1").status == 400


def test_every_list_is_narrowed_and_paged(office: Office) -> None:
    """By a part of the name and by what it belongs to; each item comes once, whatever the size of pages."""
    office.ask("POST", "/api/v1/projects", {"name": "Narrow"})
    task = office.create_task(projectId="narrow")
    for number in range(3):
        own = {"projectId": "narrow", "name": f"Narrow {number}"}
        office.ask("POST", "/api/v1/teams", {"name": f"Narrow {number}"})
        kind = {"kind": "NTFY", "settings": {"url": "https://ntfy.example/x"}}
        office.ask("POST", "/api/v1/notifiers", own | kind)
        secret = {"secret": "a secret of this test", "taskId": task["taskId"]}
        office.ask("POST", "/api/v1/webhooks", {"name": own["name"]} | secret)
        office.ask("POST", "/api/v1/personal-access-tokens", {"name": own["name"]})
        office.ask("POST", "/api/v1/users", {"name": f"narrow-{number}", "password": "long enough"})
        office.ask("POST", "/api/v1/projects/narrow/constants", {"name": f"NARROW_{number}", "value": "x"})
        office.ask("POST", "/api/v1/projects/narrow/secrets", {"name": f"NARROW_{number}", "value": "x"})
    for path in (
        "teams?", "notifiers?kind=NTFY&projectId=narrow", f"webhooks?taskId={task['taskId']}", "webhooks?projectId=narrow",
        "personal-access-tokens?", "users?", "projects/narrow/constants?", "projects/narrow/secrets?",
    ):  # fmt: skip
        whole: Any = office.ask("GET", f"/api/v1/{path}&q=nARRow").json
        assert [each["name"][-1] for each in whole["items"]] == ["0", "1", "2"], path
        assert whole["nextCursor"] is None
        first: Any = office.ask("GET", f"/api/v1/{path}&q=narrow&limit=2").json
        rest: Any = office.ask("GET", f"/api/v1/{path}&q=narrow&limit=2&cursor={first['nextCursor']}").json
        assert (first["items"] + rest["items"], rest["nextCursor"]) == (whole["items"], None)
        assert office.ask("GET", f"/api/v1/{path}&q=wide").json["items"] == []
        assert office.ask("GET", f"/api/v1/{path}&limit=501").status == 400
    started = office.ask("POST", "/api/v1/executions", {"taskId": task["taskId"]}).json
    found: Any = office.ask("GET", "/api/v1/executions?projectId=narrow").json["items"]
    assert [each["executionId"] for each in found] == [started["executionId"]]
    assert office.ask("GET", "/api/v1/executions?projectId=narrow", by="viewer").status == 404
    for wrong in (
        "webhooks?taskId=x",
        "notifiers?kind=x",
        "audit?userId=x",
        "audit?from=x",
        "executions?taskId=x",
    ):
        assert office.ask("GET", f"/api/v1/{wrong}").status == 400, wrong
    far = office.ask("GET", "/api/v1/audit?from=9999999999999999999")
    assert (far.status, far.json["items"]) == (200, [])
    path = f"/api/v1/executions/{started['executionId']}"
    assert office.ask("POST", f"{path}/abort").status == 202
    assert office.ask("DELETE", "/api/v1/projects/narrow").status == 204
