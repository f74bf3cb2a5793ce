"""`Idempotency-Key` where tasks are started: many requests, one execution."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ctrl_exec.common.clock import epoch_now
from ctrl_exec.common.errors import SpentKeyError
from ctrl_exec.common.log import Log
from ctrl_exec.config import load_config
from ctrl_exec.dispatcher import open_dispatcher
from ctrl_exec.operations.status import purge
from ctrl_exec.services.idempotency import IdempotencyKeys, KeyUse
from ctrl_exec.tasks.execution.once import is_on_record, settle_keys
from ctrl_exec.tasks.ulid import new_ulid, time_of
from tests.support.fleet import Answer
from tests.support.office import Office

PATH = "/api/v1/executions"


def post(office: Office, key: str, task: dict[str, Any], by: str = "manager", **parameters: Any) -> Answer:
    body: dict[str, Any] = {"taskId": task["taskId"]}
    if parameters:
        body["parameterMap"] = parameters
    return office.ask("POST", PATH, body, by=by, headers={"Idempotency-Key": key})


def count(office: Office, task: dict[str, Any]) -> int:
    """How many executions the task has."""
    found: Any = office.ask("GET", f"{PATH}?taskId={task['taskId']}").json["items"]
    return len(found)


def is_replayed(answer: Answer) -> bool:
    return answer.headers.get("Idempotent-Replayed") == "true"


def test_a_request_that_is_sent_again_starts_nothing_again(office: Office) -> None:
    task = office.create_task(multipleExecutionPolicy="CONCURRENCY", maxConcurrency=50)
    first = post(office, "once-1", task)
    assert (first.status, is_replayed(first)) == (201, False)
    assert time_of(str(first.json["executionId"])) == int(first.json["creationTs"]) // 10**6 * 10**6  # type: ignore[call-overload]
    again = post(office, "once-1", task)
    assert (again.status, is_replayed(again), again.json) == (201, True, first.json)
    assert again.headers["Location"] == first.headers["Location"]
    assert count(office, task) == 1
    # another key, or none, is another request
    assert post(office, "once-2", task).json["executionId"] != first.json["executionId"]
    assert office.ask("POST", PATH, {"taskId": task["taskId"]}).status == 201
    assert count(office, task) == 3


def test_ten_at_once_are_one(office: Office) -> None:
    task = office.create_task(multipleExecutionPolicy="CONCURRENCY", maxConcurrency=50)
    body, headers = {"taskId": task["taskId"]}, {"Idempotency-Key": "once-many"}
    headers["Authorization"] = f"Bearer {office.tokens['manager']}"
    with ThreadPoolExecutor(10) as pool:
        # the fleet's way: each request on a connection of its own
        posts = [
            pool.submit(super(Office, office).http, "POST", PATH, body, headers=headers) for _ in range(10)
        ]
        answers = [each.result() for each in posts]
    assert {each.status for each in answers} == {201}
    assert len({str(each.json["executionId"]) for each in answers}) == 1
    assert sum(map(is_replayed, answers)) == 9
    assert count(office, task) == 1


def test_a_key_stands_for_one_body_of_one_user(office: Office) -> None:
    """Another token of the user is the same user; who may not start the task learns nothing by a key."""
    parameters = [{"name": "N", "type": "INTEGER", "defaultValue": 1}]
    task = office.create_task(multipleExecutionPolicy="CONCURRENCY", maxConcurrency=50, parameters=parameters)
    first = post(office, "once-3", task, N=2)
    other = post(office, "once-3", task, N=3)
    assert (other.status, other.json["error"]) == (409, "conflict")
    assert "another body" in str(other.json["detail"])
    assert is_replayed(post(office, "once-3", task, office.token_for("manager"), N=2))
    assert post(office, "once-3", task, "executor", N=2).json["executionId"] != first.json["executionId"]
    assert post(office, "once-3", task, "stranger", N=2).status == 404
    assert post(office, "once-3", task, office.token_for("manager", scopes=("read",)), N=2).status == 403


def test_what_is_refused_has_not_used_its_key_up(office: Office) -> None:
    """By the policy, for a wrong value: the same request starts it when it may."""
    task = office.create_task(multipleExecutionPolicy="REJECT")
    running = post(office, "once-4", task)
    assert (post(office, "once-5", task).status, count(office, task)) == (409, 1)
    assert office.ask("POST", f"{PATH}/{running.json['executionId']}/abort").status == 202
    retried = post(office, "once-5", task)
    assert (retried.status, is_replayed(retried)) == (201, False)
    assert post(office, "once-6", task, UNKNOWN=1).status == 400
    assert office.ask("POST", f"{PATH}/{retried.json['executionId']}/abort").status == 202
    assert not is_replayed(post(office, "once-6", task))
    for wrong in ("", "x" * 256):
        refused = post(office, wrong, task)
        assert (refused.status, refused.json["error"]) == (400, "bad request")


def test_a_deleted_execution_is_not_begun_again(office: Office) -> None:
    task = office.create_task()
    first = post(office, "once-7", task)
    path = f"{PATH}/{first.json['executionId']}"
    assert office.ask("POST", f"{path}/abort").status == 202
    again = post(office, "once-7", task)
    assert (again.json["status"], is_replayed(again)) == ("ABORTED", True)
    assert office.ask("DELETE", path).status == 204
    spent = post(office, "once-7", task)
    assert (spent.status, spent.json["error"]) == (409, "conflict")
    assert str(first.json["executionId"]) in str(spent.json["detail"])
    assert count(office, task) == 0


def test_a_secret_in_the_body_cannot_be_tried_out_against_the_key(office: Office) -> None:
    """What is kept of the body is keyed."""
    task = office.create_task(parameters=[{"name": "PIN", "type": "SECRET", "required": True}])
    assert post(office, "once-8", task, PIN="4711").status == 201
    text = f'{{"parameterMap":{{"PIN":"4711"}},"taskId":"{task["taskId"]}"}}'
    kept = "".join(
        each.read_text() for each in (office.state / "runs" / "keys").iterdir() if len(each.name) == 64
    )
    assert str(task["taskId"]) not in kept
    assert hashlib.sha256(text.encode()).hexdigest() not in kept


def test_the_key_of_one_who_died_is_settled_before_the_purge(office: Office) -> None:
    """Runs' and executions' keys stand beside each other; neither's purge stumbles over the other's."""
    task = office.create_task()
    execution_id = str(office.ask("POST", PATH, {"taskId": task["taskId"]}).json["executionId"])
    use = KeyUse("once-9", "somebody", "", "POST", PATH, b"{}")
    keys = IdempotencyKeys(str(office.state / "runs" / "keys"), epoch_now)
    with office.store() as store:
        known = (lambda each: is_on_record(store, each), lambda _: True)
        keys.claim(use, execution_id, exists=known[0], wait=known[1]).close()  # as if it had died here
        purge(open_dispatcher(load_config(str(office.conf)), Log("test", "stderr", stream=io.StringIO())))
        settle_keys(store, keys)
        store.execute("DELETE FROM executions WHERE execution_id = ?", (execution_id,))
        with pytest.raises(SpentKeyError):
            keys.claim(use, new_ulid(1), exists=known[0], wait=known[1])
