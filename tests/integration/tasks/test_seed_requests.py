"""The seed's requests to execute a task, by plain curl with a token of the command line; what they may not be."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.tasks.ulid import ULID
from tests.support.office import PROJECT, Office, a_task

SEED_ID = "01G9SAGYJM6544WZR8P3W7XB5Q"
PLAIN = """
{
  "taskId": "01G9SAGYJM6544WZR8P3W7XB5Q"
}
"""
WITH_PARAMETERS = """
{
  "taskId": "01G9SAGYJM6544WZR8P3W7XB5Q",
  "parameterMap": {
      "COUNTRY_CODE": "US",
      "CLEAN": true,
      "MAX_RETRY": 5,
      "START_DATE": "2026-01-25"
  }
}
"""
PARAMETERS = [
    {"name": "COUNTRY_CODE", "type": "SELECTOR", "options": ["US", "FR"], "defaultValue": "FR"},
    {"name": "CLEAN", "type": "CHECKBOX", "defaultValue": False},
    {"name": "MAX_RETRY", "type": "INTEGER", "defaultValue": 1, "min": 0, "max": 9},
    {"name": "START_DATE", "type": "DATE", "defaultValue": "2026-01-01", "min": "2026-01-01", "max": "2026-12-31"},
]  # fmt: skip
DEFAULTS = {each["name"]: each["defaultValue"] for each in PARAMETERS}
WRONG: dict[str, list[Any]] = {
    "COUNTRY_CODE": ["DE", "us", "", True, 5, 1.5, ["US"], {"value": "US"}],
    "CLEAN": ["true", "", 1, 0, 1.0, [True], {}],
    "MAX_RETRY": ["5", "", True, 5.0, 1.5, 10, -1, 10**30, [5], {}],
    "START_DATE": ["2026-02-30", "2026-1-25", "25.01.2026", "2025-12-31", "2027-01-01", "", True, 20260125, [], {}],
    "UNKNOWN": [1], "country_code": ["US"],
}  # fmt: skip


class Curl:
    """Plain curl, with a token that the command line printed."""

    def __init__(self, office: Office, home: Path) -> None:
        made = office.cli("token", "create", "zabbix", "--username", "admin")
        assert re.fullmatch(r"ctpat_[A-Za-z0-9_-]{43}=\n", made.stdout), made.stderr
        self._words = [
            "curl",
            "-s",
            "-H",
            f"Authorization: Bearer {made.stdout.strip()}",
            "-w",
            "\n%{http_code}",
        ]
        self._url = f"http://127.0.0.1:{office.api_port}/api/v1"
        self._body = home / "body.json"

    def post(self, path: str, body: str) -> tuple[int, Any]:
        """The answer's status and document."""
        self._body.write_text(body)
        words = [*self._words, "-X", "POST", "-d", f"@{self._body}", self._url + path]
        answered = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
        text, _, status = answered.rpartition("\n")
        return int(status), json.loads(text)


@pytest.fixture
def curl(office: Office, tmp_path: Path) -> Curl:
    return Curl(office, tmp_path)


@pytest.fixture
def task_id(curl: Curl) -> str:
    task = {
        "projectId": PROJECT, "name": a_task()["name"], "taskType": "LOCAL_COMMAND", "parameters": PARAMETERS,
        "multipleExecutionPolicy": "CONCURRENCY", "maxConcurrency": 9, "localCommandTask": {"program": "true"},
    }  # fmt: skip
    status, made = curl.post("/tasks", json.dumps(task))
    assert status == 201, made
    return str(made["taskId"])


def test_a_task_is_executed_with_defaults_and_with_overrides(
    office: Office, curl: Curl, task_id: str
) -> None:
    wanted = json.loads(WITH_PARAMETERS)["parameterMap"]
    for body, expected in ((PLAIN, DEFAULTS), (WITH_PARAMETERS, wanted)):
        status, made = curl.post("/executions", body.replace(SEED_ID, task_id))
        assert status == 201, made
        # keys, their order, and the types of values
        assert json.dumps(made["parameterMap"]) == json.dumps(expected)
        assert ULID.fullmatch(made["executionId"])
        facts = (made["taskId"], made["projectId"], made["userId"], made["trigger"], made["status"])
        assert facts == (task_id, PROJECT, office.users["admin"], "USER", "PENDING")
    # null is as good as left out
    one = '{"taskId": "01G9SAGYJM6544WZR8P3W7XB5Q", "parameterMap": {"MAX_RETRY": 9, "START_DATE": null}}'
    _, made = curl.post("/executions", one.replace(SEED_ID, task_id))
    assert made["parameterMap"] == DEFAULTS | {"MAX_RETRY": 9}


def test_every_wrong_value_is_refused_by_its_name_and_nothing_starts(
    office: Office, curl: Curl, task_id: str
) -> None:
    wanted = json.loads(WITH_PARAMETERS)["parameterMap"]
    for name, values in WRONG.items():
        for wrong in values:
            body = {"taskId": task_id, "parameterMap": wanted | {name: wrong}}
            status, answer = curl.post("/executions", json.dumps(body))
            assert (status, list(answer.get("fields", ()))) == (400, [f"parameterMap.{name}"]), (name, wrong)
            assert name in answer["detail"]
    both = {"taskId": task_id, "parameterMap": {"CLEAN": 1, "MAX_RETRY": "x"}}
    _, answer = curl.post("/executions", json.dumps(both))
    assert set(answer["fields"]) == {"parameterMap.CLEAN", "parameterMap.MAX_RETRY"}
    assert office.ask("GET", f"/api/v1/executions?taskId={task_id}").json["items"] == []
