"""Executions over HTTP, carried by a real scheduler: commands run, are watched, ended, and survive nothing unsaid."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.process import is_group_alive
from ctrl_exec.tasks.execution.executions import find_execution
from tests.support.office import Office
from tests.support.polling import eventually

FINAL = ("SUCCESS", "FAILED", "ABORTED", "TIMED_OUT", "LOST", "SKIPPED")


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """An office with a scheduler."""
    made = Office(tmp_path_factory.mktemp("works"))
    try:
        made.start_api()
        made.start_scheduler()
        yield made
    finally:
        made.close()


def command(works: Office, line: str, **changes: Any) -> str:
    """A task that gives bash a line; its id."""
    kind = {"useShellFg": True, "commandLine": line, "logOutput": changes.pop("logOutput", "ALWAYS")}
    task = works.create_task(taskType="LOCAL_COMMAND", localCommandTask=kind, agentScriptTask=None, **changes)
    return str(task["taskId"])


def start(works: Office, task_id: str, parameters: dict[str, Any] | None = None, by: str = "admin") -> str:
    """Have it executed; the execution's id."""
    body: dict[str, Any] = {"taskId": task_id}
    if parameters is not None:
        body["parameterMap"] = parameters
    answer = works.ask("POST", "/api/v1/executions", body, by=by)
    assert answer.status == 201, answer.body
    assert answer.headers["Location"] == f"/api/v1/executions/{answer.json['executionId']}"
    return str(answer.json["executionId"])


def shown(works: Office, execution_id: str) -> dict[str, Any]:
    """The execution now."""
    return dict(works.ask("GET", f"/api/v1/executions/{execution_id}").json)


def listed(works: Office, query: str) -> list[dict[str, Any]]:
    """The executions that a query finds."""
    found: Any = works.ask("GET", f"/api/v1/executions?{query}").json["items"]
    return list(found)


def ended(works: Office, execution_id: str) -> dict[str, Any]:
    """The execution once it is over."""
    found = eventually(
        lambda: each if (each := shown(works, execution_id))["status"] in FINAL else None, timeout_s=40
    )
    assert found is not None
    return found


def log_of(works: Office, execution_id: str) -> str:
    """Its log."""
    answer = works.ask("GET", f"/api/v1/executions/{execution_id}/log")
    assert answer.status == (200 if answer.body else 204), answer.body
    return answer.body.decode()


def test_a_program_is_executed_without_a_shell(works: Office) -> None:
    """With its arguments as they are; the answer has the keys of the contract in their order."""
    kind = {"program": "printf", "args": ["%s|", "a b", "$HOME", "{{{{x"]}
    task = works.create_task(taskType="LOCAL_COMMAND", localCommandTask=kind, agentScriptTask=None)
    execution = ended(works, start(works, str(task["taskId"])))
    assert list(execution) == [
        "executionId", "creationTs", "updateTs", "taskId", "projectId", "userId", "trigger", "status",
        "parameterMap", "startTs", "endTs", "exitCode", "attempt", "runs",
    ]  # fmt: skip
    assert (execution["status"], execution["exitCode"], execution["trigger"]) == ("SUCCESS", 0, "USER")
    assert execution["creationTs"] <= execution["startTs"] <= execution["endTs"]
    assert log_of(works, execution["executionId"]) == "a b|$HOME|{{x|"


def test_parameters_reach_a_command_typed_and_by_name(works: Office) -> None:
    """The seed's four types: defaults, then what the request says."""
    parameters = [
        {"name": "COUNTRY_CODE", "type": "SELECTOR", "options": ["US", "FR"], "defaultValue": "FR"},
        {"name": "CLEAN", "type": "CHECKBOX", "defaultValue": False},
        {"name": "MAX_RETRY", "type": "INTEGER", "defaultValue": 1, "max": 9},
        {"name": "START_DATE", "type": "DATE"},
    ]
    line = 'echo "$CPP_COUNTRY_CODE $CPP_CLEAN $CPP_MAX_RETRY $CPP_START_DATE"'
    task_id = command(works, line, parameters=parameters)
    first = ended(works, start(works, task_id))
    assert log_of(works, first["executionId"]) == "FR false 1 \n"
    wanted = {"COUNTRY_CODE": "US", "CLEAN": True, "MAX_RETRY": 5, "START_DATE": "2026-01-25"}
    second = ended(works, start(works, task_id, wanted))
    assert second["parameterMap"] == wanted
    assert log_of(works, second["executionId"]) == "US true 5 2026-01-25\n"
    for name, wrong in (("COUNTRY_CODE", "DE"), ("CLEAN", "true"), ("MAX_RETRY", 10), ("MAX_RETRY", "5"),
                        ("START_DATE", "2026-02-30"), ("UNKNOWN", 1)):  # fmt: skip
        body = {"taskId": task_id, "parameterMap": {name: wrong}}
        answer = works.ask("POST", "/api/v1/executions", body)
        assert answer.status == 400
        fields: Any = answer.json["fields"]
        assert list(fields) == [f"parameterMap.{name}"]
    found = listed(works, f"taskId={task_id}")
    assert [each["executionId"] for each in found] == [second["executionId"], first["executionId"]]


def test_a_failure_says_its_code_and_a_signal_its_name(works: Office) -> None:
    """The log holds both streams."""
    failed = ended(works, start(works, command(works, "echo out; echo err >&2; exit 3")))
    assert (failed["status"], failed["exitCode"]) == ("FAILED", 3)
    assert sorted(log_of(works, failed["executionId"]).split()) == ["err", "out"]
    killed = ended(works, start(works, command(works, "kill -9 $$")))
    assert (killed["status"], killed["exitCode"], killed["reason"]) == ("FAILED", 126, "killed by signal 9")


def test_at_its_time_limit_a_command_is_ended(works: Office) -> None:
    """And says so."""
    task_id = command(works, "echo begun; sleep 600", timeout=1, timeoutDurationUnit="SECOND")
    execution = ended(works, start(works, task_id))
    assert (execution["status"], execution["reason"]) == ("TIMED_OUT", "timed out after 1s")
    assert log_of(works, execution["executionId"]) == "begun\n"


def test_an_abort_ends_the_whole_group(works: Office) -> None:
    """What it started goes with it; a second abort is no error."""
    execution_id = start(works, command(works, "sleep 600 & echo begun; sleep 600"))
    eventually(lambda: log_of(works, execution_id) == "begun\n")
    with works.store() as store:
        group = find_execution(store, execution_id).group_pid
    assert group is not None
    assert is_group_alive(group)
    answer = works.ask("POST", f"/api/v1/executions/{execution_id}/abort")
    assert (answer.status, answer.json["status"]) == (202, "ABORTING")
    assert ended(works, execution_id)["status"] == "ABORTED"
    assert not is_group_alive(group)
    assert works.ask("POST", f"/api/v1/executions/{execution_id}/abort").json["status"] == "ABORTED"


def test_what_waits_says_what_for_and_starts_in_its_turn(works: Office) -> None:
    """SMART_CHAINING: one waits, the next is refused; both that were taken are executed one after the other."""
    task_id = command(works, "sleep 0.5", multipleExecutionPolicy="SMART_CHAINING")
    first = start(works, task_id)
    eventually(lambda: shown(works, first)["status"] == "RUNNING")
    second = start(works, task_id)
    assert shown(works, second).get("waitsFor") in (f"execution {first} of the same task", None)
    refused = works.ask("POST", "/api/v1/executions", {"taskId": task_id})
    assert (refused.status, refused.json["error"]) == (409, "conflict")
    assert ended(works, second)["startTs"] >= ended(works, first)["endTs"]


def test_replacement_aborts_what_runs_and_starts_when_it_is_gone(works: Office) -> None:
    """The newest wins."""
    task_id = command(works, "sleep ${CPP_S}", multipleExecutionPolicy="REPLACEMENT",
                      parameters=[{"name": "S", "type": "INTEGER", "defaultValue": 600}])  # fmt: skip
    first = start(works, task_id)
    eventually(lambda: shown(works, first)["status"] == "RUNNING")
    second = start(works, task_id, {"S": 0})
    assert ended(works, second)["status"] == "SUCCESS"
    assert ended(works, first)["status"] == "ABORTED"
    assert shown(works, second)["startTs"] >= shown(works, first)["endTs"]


def test_a_failure_is_tried_again_as_its_task_says(works: Office, tmp_path: Path) -> None:
    """Each attempt is an execution of its own."""
    mark = tmp_path / "mark"
    task_id = command(
        works, f"test -e {mark} && exit 0; touch {mark}; exit 1", retry={"maxAttempts": 3, "delay": 0}
    )
    first = ended(works, start(works, task_id))
    assert first["status"] == "FAILED"

    def second() -> Any:
        items = listed(works, f"taskId={task_id}&status=SUCCESS")
        return items[0] if items else None

    found = eventually(second)
    assert (found["trigger"], found["attempt"], found["retryOf"]) == ("RETRY", 2, first["executionId"])
    again = works.ask("POST", f"/api/v1/executions/{first['executionId']}/retry")
    assert again.status == 201
    assert ended(works, str(again.json["executionId"]))["status"] == "SUCCESS"


def test_secrets_are_in_no_log_and_no_answer(works: Office) -> None:
    """A SECRET parameter reaches the command; it is masked where the command prints it."""
    task_id = command(
        works, 'printf "%s" "$CPP_KEY" | cut -c1-3; echo "key=$CPP_KEY"',
        parameters=[{"name": "KEY", "type": "SECRET", "required": True}],
    )  # fmt: skip
    execution_id = start(works, task_id, {"KEY": "s3cr3t-of-the-day"})
    execution = ended(works, execution_id)
    assert execution["status"] == "SUCCESS"
    assert execution["parameterMap"] == {"KEY": "********"}
    assert log_of(works, execution_id) == "s3c\nkey=********\n"
    with works.store() as store:
        rows = store.rows("SELECT sealed FROM executions WHERE execution_id = ?", (execution_id,))
        dump = "".join(map(str, store.rows("SELECT before, after FROM audit")))
    assert rows[0]["sealed"] is None
    assert "s3cr3t" not in dump
    assert b"s3cr3t-of-the-day" not in (works.state / "tasks.db").read_bytes()
    refused = works.ask("POST", f"/api/v1/executions/{execution_id}/retry")
    assert refused.status == 409


def test_a_log_is_kept_as_its_task_wants_it(works: Office) -> None:
    """NEVER and ON_FAILURE; a range of it; a follower gets it as it comes and to the end."""
    never = ended(works, start(works, command(works, "echo x", logOutput="NEVER")))
    assert log_of(works, never["executionId"]) == ""
    on_failure = command(works, "echo x; exit $CPP_CODE", logOutput="ON_FAILURE",
                         parameters=[{"name": "CODE", "type": "INTEGER", "defaultValue": 0}])  # fmt: skip
    assert log_of(works, ended(works, start(works, on_failure))["executionId"]) == ""
    failed = ended(works, start(works, on_failure, {"CODE": 1}))["executionId"]
    assert log_of(works, failed) == "x\n"
    task_id = command(works, "for n in 1 2 3 4 5; do echo line-$n; sleep 0.1; done")
    execution_id = start(works, task_id)
    path = f"/api/v1/executions/{execution_id}/log"
    stream = works.ask("GET", f"{path}?follow=true").body.decode()
    events = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in stream.split("\n\n") if block
    ]
    texts = [json.loads(each["data"])["text"] for each in events if each["event"] == "log"]
    assert "".join(texts) == "".join(f"line-{n}\n" for n in range(1, 6))
    assert events[-1]["event"] == "end"
    assert json.loads(events[-1]["data"])["status"] == "SUCCESS"
    part = works.ask("GET", path, headers={"Range": "bytes=7-13"})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"line-2\n", "bytes 7-13/35")
    assert works.ask("GET", path, headers={"Range": "bytes=-7"}).body == b"line-5\n"
    assert works.ask("GET", path, headers={"Range": "bytes=35-"}).status == 416
    resumed = works.ask("GET", f"{path}?follow=true&after=28").body.decode()
    assert '"line-5\\n"' in resumed
    assert "line-4" not in resumed


def test_a_command_is_not_executed_as_another_than_local_user(tmp_path: Path) -> None:
    """Who configured an account with fewer rights does not get the scheduler's instead."""
    own = Office(tmp_path, settings={"local_user": "nobody" if os.geteuid() == 0 else "root"})
    try:
        own.start_api()
        own.start_scheduler()
        execution = ended(own, start(own, command(own, f"touch {tmp_path}/done")))
        assert execution["status"] == "FAILED"
        assert "local_user" in execution["reason"]
        assert not (tmp_path / "done").exists()
    finally:
        own.close()


def test_followers_of_logs_count_as_long(tmp_path: Path) -> None:
    """However many there are, others are still answered."""
    own = Office(tmp_path, settings={"api_max_children": 4, "api_max_long": 1})
    try:
        own.start_api()
        execution_id = start(own, command(own, "echo x"))  # nobody carries it: its log never ends
        path = f"/api/v1/executions/{execution_id}/log?follow=true"
        headers = {"Authorization": f"Bearer {own.tokens['admin']}"}
        follower = http.client.HTTPConnection("127.0.0.1", own.api_port, timeout=60)
        try:
            follower.request("GET", path, headers=headers)
            answer = follower.getresponse()  # kept: it holds the connection from now on
            assert answer.status == 200
            assert own.ask("HEAD", path).status == 200
            refused = own.ask("GET", path)
            assert refused.status == 503
            assert "api_max_long" in str(refused.json)
            answer.close()
        finally:
            follower.close()
    finally:
        own.close()


def test_rights_are_those_of_the_role(works: Office) -> None:
    """A viewer does not run, an executor sees no log, another project's manager sees nothing."""
    task_id = command(works, "echo x")
    assert works.ask("POST", "/api/v1/executions", {"taskId": task_id}, by="viewer").status == 403
    assert works.ask("POST", "/api/v1/executions", {"taskId": task_id}, by="stranger").status == 404
    execution_id = start(works, task_id, by="executor")
    ended(works, execution_id)
    path = f"/api/v1/executions/{execution_id}"
    assert works.ask("GET", path, by="viewer").status == 200
    assert works.ask("GET", f"{path}/log", by="executor").status == 403
    assert works.ask("GET", f"{path}/log", by="advanced_executor").status == 200
    for method, what in (
        ("GET", ""),
        ("GET", "/log"),
        ("POST", "/abort"),
        ("POST", "/retry"),
        ("DELETE", ""),
    ):
        assert works.ask(method, path + what, by="stranger").status == 404
    assert works.ask("DELETE", path, by="advanced_executor").status == 403
    assert works.ask("DELETE", path, by="manager").status == 204
    assert works.ask("GET", path).status == 404
    assert not list((works.state / "executions").glob(f"{execution_id}*"))


def test_a_program_that_is_not_there_fails_by_name(works: Office) -> None:
    """As the last line of its log."""
    kind = {"program": "no-such-program-anywhere", "args": []}
    task = works.create_task(taskType="LOCAL_COMMAND", localCommandTask=kind, agentScriptTask=None)
    execution = ended(works, start(works, str(task["taskId"])))
    assert (execution["status"], execution["exitCode"]) == ("FAILED", 126)
    assert "no-such-program-anywhere" in execution["reason"]
    assert "no-such-program-anywhere" in log_of(works, execution["executionId"])


def test_a_killed_carrier_leaves_a_lost_execution_and_no_process(tmp_path: Path) -> None:
    """Also where the scheduler dies with it: the next one finds out."""
    works = Office(tmp_path)
    try:
        works.start_api()
        scheduler = works.start_scheduler()
        execution_id = start(works, command(works, "sleep 600"))
        eventually(lambda: shown(works, execution_id)["status"] == "RUNNING")

        def group() -> int | None:
            with works.store() as store:
                return find_execution(store, execution_id).group_pid

        pid = eventually(group)
        assert pid is not None
        scheduler.kill()
        carrier = _carrier_of(pid)
        os.kill(carrier, signal.SIGKILL)
        assert is_group_alive(pid)
        works.start_scheduler()
        execution = ended(works, execution_id)
        assert (execution["status"], execution["reason"]) == ("LOST", "the process that carried it died")
        assert not is_group_alive(pid)
    finally:
        works.close()


def _carrier_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as about:
        return int(about.read().rpartition(b")")[2].split()[1])
