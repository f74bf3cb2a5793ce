"""Tasks over HTTP: the seed's request by plain curl, changes with their versions, lists, every fault by name."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.tasks.ulid import ULID
from tests.support.office import OTHER_PROJECT, PROJECT, Office, a_task

SEED_REQUEST = """
{
  "projectId": "my-awesome-project",
  "name": "My awesome task",
  "description": "This is really an awesome task",
  "multipleExecutionPolicy": "REJECT",
  "taskNotifierMap": {},
  "scheduledFg": true,
  "cronExpression": "0 9 * * *",
  "timeout": 30,
  "timeoutDurationUnit": "MINUTE",
  "executionRetentionPeriod": 30,
  "taskType": "LOCAL_COMMAND",
  "parameters": [],
  "localCommandTask": {
      "useShellFg": false,
      "commandLine": null,
      "program": "ip",
      "args": [
          "-c",
          "address"
      ],
      "logOutput": "ALWAYS"
  }
}
"""
SEED_RESPONSE = """
{
  "taskId": "01J8ZWXQ1572KC6XGE7T74PT4P",
  "creationTs": 1727647374373505276,
  "updateTs": 1727647374373505276,
  "userId": "01GV1PR26RXBMV4PCPV5TEK1E9",
  "projectId": "my-awesome-project",
  "name": "My awesome task",
  "description": "This is really an awesome task",
  "parameters": [],
  "multipleExecutionPolicy": "REJECT",
  "taskNotifierMap": {},
  "scheduledFg": true,
  "cronExpression": "0 9 * * *",
  "timeout": 30,
  "timeoutDurationUnit": "MINUTE",
  "executionRetentionPeriod": 30,
  "taskType": "LOCAL_COMMAND",
  "localCommandTask": {
      "useShellFg": false,
      "commandLine": null,
      "program": "ip",
      "args": [
          "-c",
          "address"
      ],
      "logOutput": "ALWAYS"
  }
}
"""


def test_the_seeds_task_is_created_by_plain_curl_with_a_token_of_the_command_line(
    office: Office, tmp_path: Path
) -> None:
    made = office.cli("token", "create", "zabbix", "--username", "admin", "--expires", "90d")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert made.stdout == token + "\n"
    body = tmp_path / "task.json"
    body.write_text(SEED_REQUEST)
    answered = subprocess.run(
        [
            "curl", "-s", "-X", "POST", "-H", f"Authorization: Bearer {token}", "-d", f"@{body}",
            f"http://127.0.0.1:{office.api_port}/api/v1/tasks",
        ],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    found, expected = json.loads(answered), json.loads(SEED_RESPONSE)
    assert ULID.fullmatch(found["taskId"])
    assert found["userId"] == office.users["admin"]
    assert found["creationTs"] == found["updateTs"]
    own = {name: found[name] for name in ("taskId", "creationTs", "updateTs", "userId")}
    # keys, their order and values, and nothing besides
    assert json.dumps(found) == json.dumps(expected | own)


def test_a_task_is_shown_changed_and_removed_with_its_version(office: Office) -> None:
    task = office.create_task()
    path = f"/api/v1/tasks/{task['taskId']}"
    shown = office.ask("GET", path)
    assert shown.json == task
    first = shown.headers["ETag"]

    amended = office.ask("PATCH", path, {"description": "new", "timeout": 5, "timeoutDurationUnit": "MINUTES"},
                         headers={"If-Match": first})  # fmt: skip
    assert amended.status == 200
    assert amended.json == task | {
        "description": "new", "timeout": 5, "timeoutDurationUnit": "MINUTE", "updateTs": amended.json["updateTs"],
    }  # fmt: skip
    assert amended.headers["ETag"] != first

    stale = {"If-Match": first}
    assert office.ask("PATCH", path, {"description": "newer"}, headers=stale).status == 412
    assert office.ask("PUT", path, task, headers=stale).status == 412
    assert office.ask("DELETE", path, headers=stale).status == 412
    assert office.ask("DELETE", path, headers={"If-Match": 'W/"1", nonsense'}).status == 412

    # what came from us may be sent back; what is left out of a PUT has its default again
    whole = {
        key: task[key] for key in ("projectId", "name", "taskType", "agentScriptTask", "taskId", "userId")
    }
    replaced = office.ask("PUT", path, whole, headers={"If-Match": f"{first}, {amended.headers['ETag']}"})
    assert replaced.status == 200
    assert replaced.json | {"updateTs": 0} == task | {"updateTs": 0}
    assert office.ask("PUT", path, whole | {"userId": office.users["viewer"]}).status == 400

    assert office.ask("DELETE", path, headers={"If-Match": "*"}).status == 204
    assert office.ask("GET", path).status == 404
    assert office.ask("DELETE", path).status == 404


def test_a_patch_may_change_the_kind(office: Office) -> None:
    task = office.create_task()
    patch = {"taskType": "HTTP_REQUEST", "httpRequestTask": {"url": "https://example.net/hook"}}
    changed = office.ask("PATCH", f"/api/v1/tasks/{task['taskId']}", patch)
    assert changed.status == 200
    assert "agentScriptTask" not in changed.json
    assert changed.json["httpRequestTask"] == {
        "method": "GET", "url": "https://example.net/hook", "headers": {}, "body": None, "expectedStatus": None,
    }  # fmt: skip


def test_what_is_used_beyond_the_seed_comes_back(office: Office) -> None:
    """And what is not used stays absent: the seed's keys are all there are."""
    beyond: dict[str, Any] = {
        "multipleExecutionPolicy": "CONCURRENCY", "maxConcurrency": 3, "enabledFg": False, "scheduledFg": True,
        "cronExpression": "*/30 * * * * *", "cronTimezone": "Europe/Berlin", "missedRunPolicy": "RUN_ONCE",
        "startDeadline": 600, "retry": {"maxAttempts": 3, "delay": 10, "backoff": 2},
        "schedules": [{"cronExpression": "@daily", "parameterMap": {"COUNTRY_CODE": "FR"}}],
        "calendar": {"mode": "EXCLUDE", "dates": ["2026-12-25"]},
        "parameters": [
            {"name": "COUNTRY_CODE", "type": "SELECTOR", "options": ["US", {"value": "FR", "label": "France"}],
             "defaultValue": "US"},
        ],
        "agentScriptTask": {
            "script": "hello", "hosts": ["web[01-20]", "@role=db"], "args": ["--for={{COUNTRY_CODE}}"],
            "batch": {"size": "20%", "maxFailures": 1, "pause": 5}, "lockWait": 60, "logOutput": "ON_FAILURE",
        },
    }  # fmt: skip
    task = office.create_task(**beyond)
    shown = {"label": "", "required": False}
    expected = beyond | {"parameters": [beyond["parameters"][0] | shown]}
    assert {key: task[key] for key in expected} == expected
    again = office.ask("PUT", f"/api/v1/tasks/{task['taskId']}", task)
    assert again.json | {"updateTs": 0} == task | {"updateTs": 0}


def test_synonyms_are_taken_and_one_spelling_is_given(office: Office) -> None:
    task = office.create_task(multipleExecutionPolicy="CHAIN", timeout=2, timeoutDurationUnit="HOURS")
    assert (task["multipleExecutionPolicy"], task["timeoutDurationUnit"]) == ("SMART_CHAINING", "HOUR")


LOCAL = {"taskType": "LOCAL_COMMAND", "agentScriptTask": None}
SELECTOR = {"name": "P", "type": "SELECTOR", "options": ["a"]}
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("name", {"name": ""}),
    ("name", {"name": "two\nlines"}),
    ("projectId", {"projectId": None}),
    ("zap", {"zap": 1}),
    ("taskId", {"taskId": "01J8ZWXQ1572KC6XGE7T74PT4P"}),
    ("scheduledFg", {"scheduledFg": 1}),
    ("cronExpression", {"scheduledFg": True}),
    ("cronExpression", {"cronExpression": "61 * * * *"}),
    ("cronExpression", {"cronExpression": "* * * *\n*"}),
    ("cronTimezone", {"cronTimezone": "Mars/Olympus"}),
    ("schedules[0].cronExpression", {"schedules": [{"cronExpression": "x"}]}),
    ("schedules[0].parameterMap.NOPE", {"schedules": [{"cronExpression": "@daily", "parameterMap": {"NOPE": 1}}]}),
    ("timeoutDurationUnit", {"timeout": 5}),
    ("timeout", {"timeout": True, "timeoutDurationUnit": "HOUR"}),
    ("timeout", {"timeout": 0, "timeoutDurationUnit": "HOUR"}),
    ("timeout", {"timeout": 5.0, "timeoutDurationUnit": "HOUR"}),
    ("executionRetentionPeriod", {"executionRetentionPeriod": -1}),
    ("multipleExecutionPolicy", {"multipleExecutionPolicy": "reject"}),
    ("maxConcurrency", {"multipleExecutionPolicy": "CONCURRENCY"}),
    ("maxConcurrency", {"maxConcurrency": 2}),
    ("taskNotifierMap.x", {"taskNotifierMap": {"x": {"events": ["ON_END"]}}}),
    ("taskNotifierMap.x.events", {"taskNotifierMap": {"x": {"events": ["ON_FIRE"]}}}),
    ("calendar.dates[0]", {"calendar": {"mode": "EXCLUDE", "dates": ["2026-02-30"]}}),
    ("retry.maxAttempts", {"retry": {"maxAttempts": 1}}),
    ("taskType", {"taskType": "MAGIC"}),
    ("localCommandTask", LOCAL),
    ("agentScriptTask", {**LOCAL, "localCommandTask": {"program": "ip"}, "agentScriptTask": {}}),
    ("localCommandTask.program", {**LOCAL, "localCommandTask": {}}),
    ("localCommandTask.commandLine", {**LOCAL, "localCommandTask": {"program": "ip", "commandLine": "ip"}}),
    ("localCommandTask.args", {**LOCAL, "localCommandTask": {"useShellFg": True, "commandLine": "a", "args": []}}),
    ("localCommandTask.program", {**LOCAL, "localCommandTask": {"program": "{{P}}"}}),
    ("agentScriptTask.script", {"agentScriptTask": {"script": "../x", "hosts": ["a"]}}),
    ("agentScriptTask.hosts", {"agentScriptTask": {"script": "x", "hosts": []}}),
    ("agentScriptTask.hosts[0]", {"agentScriptTask": {"script": "x", "hosts": ["{{P}}"]}}),
    ("agentScriptTask.args[0]", {"agentScriptTask": {"script": "x", "hosts": ["a"], "args": ["{{NOPE}}"]}}),
    ("agentScriptTask.args[0]", {"agentScriptTask": {"script": "x", "hosts": ["a"], "args": ["{{ nope"]}}),
    ("agentScriptTask.args[0]", {
        "parameters": [{"name": "P", "type": "SECRET"}],
        "agentScriptTask": {"script": "x", "hosts": ["a"], "args": ["{{P}}"]},
    }),
    ("agentScriptTask.batch.size", {"agentScriptTask": {"script": "x", "hosts": ["a"], "batch": {"size": "0%"}}}),
    ("httpRequestTask.url", {"taskType": "HTTP_REQUEST", "httpRequestTask": {"url": "ftp://x"}, "agentScriptTask": None}),
    ("httpRequestTask.url", {
        "taskType": "HTTP_REQUEST", "httpRequestTask": {"url": "http://x/{{P}}"}, "agentScriptTask": None,
        "parameters": [SELECTOR],
    }),
    ("httpRequestTask.headers.Host", {
        "taskType": "HTTP_REQUEST", "httpRequestTask": {"url": "http://x", "headers": {"Host": "y"}},
        "agentScriptTask": None,
    }),
    ("workflowTask.steps", {"taskType": "WORKFLOW", "workflowTask": {"steps": []}, "agentScriptTask": None}),
    ("workflowTask.steps[0].taskId", {
        "taskType": "WORKFLOW", "agentScriptTask": None,
        "workflowTask": {"steps": [{"taskId": "01J8ZWXQ1572KC6XGE7T74PT4P"}]},
    }),
    ("parameters[0].name", {"parameters": [SELECTOR | {"name": "lower"}]}),
    ("parameters[1].name", {"parameters": [SELECTOR, SELECTOR]}),
    ("parameters[0].type", {"parameters": [{"name": "P"}]}),
    ("parameters[0].options", {"parameters": [{"name": "P", "type": "SELECTOR"}]}),
    ("parameters[0].options", {"parameters": [SELECTOR | {"options": ["a", "a"]}]}),
    ("parameters[0].min", {"parameters": [SELECTOR | {"min": 1}]}),
    ("parameters[0].max", {"parameters": [{"name": "P", "type": "INTEGER", "min": 2, "max": 1}]}),
    ("parameters[0].pattern", {"parameters": [{"name": "P", "type": "TEXT", "pattern": "("}]}),
    ("parameters[0].defaultValue", {"parameters": [SELECTOR | {"defaultValue": "b"}]}),
    ("parameters[0].defaultValue", {"parameters": [{"name": "P", "type": "CHECKBOX", "defaultValue": "true"}]}),
    ("parameters[0].defaultValue", {"parameters": [{"name": "P", "type": "INTEGER", "defaultValue": True}]}),
    ("parameters[0].defaultValue", {"parameters": [{"name": "P", "type": "DATE", "defaultValue": "2026-13-01"}]}),
    ("parameters[0].defaultValue", {"parameters": [{"name": "P", "type": "SECRET", "defaultValue": "x"}]}),
]  # fmt: skip


def test_every_fault_is_named_and_nothing_is_made(office: Office) -> None:
    before = office.ask("GET", "/api/v1/tasks?limit=500").json["items"]
    for field, changes in FAULTS:
        answer = office.ask("POST", "/api/v1/tasks", a_task(**changes))
        assert answer.status == 400, (field, changes, answer.body)
        fields = answer.json["fields"]
        assert isinstance(fields, dict)
        assert list(fields) == [field], (changes, fields)
        assert f"{field}: " in str(answer.json["detail"])
    assert office.ask("GET", "/api/v1/tasks?limit=500").json["items"] == before


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"name": "a", "name": "b"}', b"\xff", b'{"timeout": NaN}']
)
def test_what_is_no_object_is_refused(office: Office, body: bytes) -> None:
    assert office.ask("POST", "/api/v1/tasks", body).status == 400


def test_a_name_is_taken_once_in_a_project(office: Office) -> None:
    task = office.create_task()
    assert office.ask("POST", "/api/v1/tasks", a_task(name=task["name"])).status == 409
    assert office.create_task(name=task["name"], projectId=OTHER_PROJECT)["projectId"] == OTHER_PROJECT
    other = office.create_task()
    clash = office.ask("PATCH", f"/api/v1/tasks/{other['taskId']}", {"name": task["name"]})
    assert clash.status == 409
    moved = office.ask("PATCH", f"/api/v1/tasks/{other['taskId']}", {"projectId": OTHER_PROJECT})
    assert moved.status == 400
    assert office.ask("POST", "/api/v1/tasks", a_task(projectId="nowhere")).status == 404


def test_a_workflow_keeps_its_steps_and_never_leads_to_itself(office: Office) -> None:
    step = office.create_task(parameters=[{"name": "P", "type": "INTEGER"}])
    flow = office.create_task(
        taskType="WORKFLOW", agentScriptTask=None,
        workflowTask={"steps": [
            {"taskId": step["taskId"], "parameterMap": {"P": 1}},
            {"stepType": "APPROVAL", "role": "MANAGER", "name": "go?"},
        ]},
    )  # fmt: skip
    assert flow["workflowTask"]["steps"][1] == {
        "name": "go?", "stepType": "APPROVAL", "role": "MANAGER", "onFailure": "STOP", "condition": None,
    }  # fmt: skip
    path = f"/api/v1/tasks/{flow['taskId']}"
    itself = office.ask("PATCH", path, {"workflowTask": {"steps": [{"taskId": flow["taskId"]}]}})
    assert "would execute itself" in str(itself.json["detail"])
    wrong = office.ask("PATCH", path, {"workflowTask": {"steps": [
        {"taskId": step["taskId"], "parameterMap": {"P": "1"}}]}})  # fmt: skip
    assert wrong.status == 400
    assert "workflowTask.steps[0].parameterMap.P" in dict(wrong.json["fields"])  # type: ignore[call-overload]
    assert office.ask("DELETE", f"/api/v1/tasks/{step['taskId']}").status == 409


def test_lists_are_filtered_and_paged(office: Office) -> None:
    made = [office.create_task(name=f"Paged {place}")["taskId"] for place in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = office.ask("GET", f"/api/v1/tasks?q=pAGED&projectId={PROJECT}&limit=2{cursor}").json
        items = page["items"]
        assert isinstance(items, list)
        assert len(items) <= 2
        found += [each["taskId"] for each in items]
        if page["nextCursor"] is None:
            break
        cursor = f"&cursor={page['nextCursor']}"
    assert found == made
    assert office.ask("GET", "/api/v1/tasks?q=Paged&taskType=WORKFLOW").json == {
        "items": [],
        "nextCursor": None,
    }
    for query in (
        "limit=0",
        "limit=501",
        "limit=x",
        "zap=1",
        "q=a&q=b",
        "taskType=MAGIC",
        "cursor=" + "x" * 101,
    ):
        assert office.ask("GET", f"/api/v1/tasks?{query}").status == 400, query
    assert office.ask("GET", "/api/v1/tasks?projectId=nowhere").json["items"] == []
