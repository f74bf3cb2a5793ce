"""Workflows with a real scheduler: steps are executed, approved, aborted, and survive whoever is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.process import is_group_alive
from ctrl_exec.tasks.execution.executions import find_execution
from tests.integration.tasks.test_executions import command, ended, log_of, shown, start
from tests.support.office import OTHER_PROJECT, PROJECT, Office
from tests.support.polling import eventually

APPROVAL = {"stepType": "APPROVAL", "role": "MANAGER", "name": "Go?"}


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """An office with a scheduler that has one place."""
    made = Office(tmp_path_factory.mktemp("flows"), {"tasks_max_running": 1})
    try:
        made.start_api()
        made.start_scheduler()
        yield made
    finally:
        made.close()


def workflow(works: Office, *steps: str | dict[str, Any], mode: str = "SEQUENTIAL", **changes: Any) -> str:
    """A workflow of these steps, a task's id being one; its id."""
    kind = {"steps": [{"taskId": each} if isinstance(each, str) else each for each in steps], "mode": mode}
    task = works.create_task(taskType="WORKFLOW", workflowTask=kind, agentScriptTask=None, **changes)
    return str(task["taskId"])


def until_it_waits(works: Office, execution_id: str) -> None:
    """Until a workflow waits for its approval."""
    eventually(lambda: "approval Go? by MANAGER" in shown(works, execution_id).get("waitsFor", ""))


def decide(works: Office, execution_id: str, word: str, body: object = None, by: str = "manager") -> Any:
    """The answer to a verdict."""
    return works.ask("POST", f"/api/v1/executions/{execution_id}/{word}", body, by=by)


def test_steps_run_in_order_with_one_place_for_all(works: Office, tmp_path: Path) -> None:
    """The executor of the project may run what an administrator made; two levels share one place."""
    out = tmp_path / "out"
    words = [command(works, f"echo {word} >> {out}") for word in ("one", "two", "three")]
    inner = workflow(works, words[1], words[2])
    flow = ended(works, start(works, workflow(works, words[0], inner), by="executor"))
    assert (flow["status"], flow["exitCode"]) == ("SUCCESS", 0)
    assert out.read_text().split() == ["one", "two", "three"]
    child = shown(works, flow["steps"][0]["executionId"])
    assert (child["trigger"], child["parentExecutionId"]) == ("WORKFLOW", flow["executionId"])
    assert child["userId"] == works.users["executor"]
    assert "step 1: task" in log_of(works, flow["executionId"])
    assert [each["status"] for each in flow["steps"]] == ["SUCCESS", "SUCCESS"]


def test_a_failing_step_stops_those_after_it(works: Office) -> None:
    """And its exit code is told."""
    flow = ended(works, start(works, workflow(works, command(works, "exit 7"), command(works, "true"))))
    assert flow["status"] == "FAILED"
    assert flow["reason"].endswith("FAILED, exit 7")
    assert [each["status"] for each in flow["steps"]] == ["FAILED", "SKIPPED"]


def test_it_waits_for_somebody_and_holds_no_place(works: Office) -> None:
    """Another role is refused, another project's manager finds nothing; the first word stands."""
    flow = start(works, workflow(works, APPROVAL, command(works, "echo on")), by="executor")
    until_it_waits(works, flow)
    assert ended(works, start(works, command(works, "true")))["status"] == "SUCCESS"
    assert decide(works, flow, "approve", by="advanced_executor").status == 403
    assert decide(works, flow, "approve", by="stranger").status == 404
    assert decide(works, flow, "approve", {"comment": "a\nb"}).status == 400
    answer = decide(works, flow, "approve", {"comment": "fine"})
    assert answer.status == 200
    assert answer.json["steps"][0]["decidedBy"] == "manager"
    assert decide(works, flow, "reject").status == 409
    assert ended(works, flow)["status"] == "SUCCESS"
    entries: Any = works.ask("GET", "/api/v1/audit?action=approve").json["items"]
    mine = next(each for each in entries if each["objectId"] == flow)
    assert (mine["username"], mine["after"]["comment"]) == ("manager", "fine")


def test_rejected_and_timed_out_it_fails(works: Office) -> None:
    """In its own time."""
    flow = start(works, workflow(works, APPROVAL))
    until_it_waits(works, flow)
    assert decide(works, flow, "reject", {"comment": "no", "step": 1}, by="admin").status == 200
    assert ended(works, flow)["reason"] == "step 1: approval Go?: FAILED, rejected by admin: no"
    step = APPROVAL | {"timeout": 1, "timeoutDurationUnit": "SECOND"}
    late = ended(works, start(works, workflow(works, step)))
    assert late["steps"][0]["status"] == "TIMED_OUT"
    assert late["status"] == "FAILED"


def test_at_the_prompt(works: Office) -> None:
    """`execution approve` and `reject`."""
    for word, status in (("approve", "SUCCESS"), ("reject", "FAILED")):
        flow = start(works, workflow(works, APPROVAL))
        until_it_waits(works, flow)
        said = works.cli("execution", word, flow, "--comment", "from here", "--username", "admin")
        assert said.returncode == 0, said.stderr
        found = ended(works, flow)
        assert (found["status"], found["steps"][0]["comment"]) == (status, "from here")
        again = works.cli("execution", word, flow, "--username", "admin")
        assert again.returncode == 1
        assert "waits for no approval" in again.stderr


def test_an_abort_ends_the_step_and_its_group(works: Office) -> None:
    """ABORTED is said when nothing of it lives."""
    flow = start(works, workflow(works, workflow(works, command(works, "sleep 600 & sleep 600"))))
    group = eventually(lambda: group_within(works, flow))
    assert is_group_alive(group)
    assert works.ask("POST", f"/api/v1/executions/{flow}/abort").status == 202
    assert ended(works, flow)["status"] == "ABORTED"
    assert not is_group_alive(group)


def group_within(works: Office, execution_id: str) -> int:
    """The process group of the command in a workflow's first step, however deep; 0 before there is one."""
    found = shown(works, execution_id)
    while found.get("steps"):
        found = shown(works, found["steps"][0]["executionId"])
    if found["taskId"] == shown(works, execution_id)["taskId"]:
        return 0
    with works.store() as store:
        return find_execution(store, found["executionId"]).group_pid or 0


def test_the_starter_loses_the_role_between_two_steps(works: Office, tmp_path: Path) -> None:
    """The second fails by name, and is not started."""
    go = tmp_path / "go"
    first = command(works, f"until test -e {go}; do sleep 0.05; done")
    second = command(works, f"touch {go}.second", name="Second of two")
    path = f"/api/v1/projects/{PROJECT}/roles"
    roles: Any = works.ask("GET", path).json["items"]
    flow = start(works, workflow(works, first, second), by="executor")
    eventually(lambda: group_within(works, flow))
    try:
        left = [each for each in roles if each["role"] != "EXECUTOR"]
        assert works.ask("PUT", path, {"items": left}).status == 200
        go.touch()
        found = ended(works, flow)
    finally:
        assert works.ask("PUT", path, {"items": roles}).status == 200
    second_step = found["steps"][1]
    assert (second_step["status"], "executionId" in second_step) == ("FAILED", False)
    assert found["reason"].startswith("step 2: task Second of two: FAILED, not started: no task")
    assert not Path(f"{go}.second").exists()


def test_export_keeps_the_steps(works: Office) -> None:
    """Out, in, and out again: the same but for the ids."""
    name = "Flows to take along"
    assert works.ask("POST", "/api/v1/projects", {"name": name}).status == 201
    project = "flows-to-take-along"
    step = command(works, "true", projectId=project, name="Leaf")
    approval = APPROVAL | {"timeout": 5, "timeoutDurationUnit": "HOUR", "condition": "ALWAYS"}
    inner = workflow(works, {"taskId": step, "onFailure": "CONTINUE", "name": "leaf"}, approval,
                     projectId=project, name="Inner")  # fmt: skip
    workflow(works, step, inner, mode="CONCURRENT", projectId=project, name="Outer")
    first: Any = works.ask("GET", f"/api/v1/projects/{project}/export").json
    assert works.ask("DELETE", f"/api/v1/projects/{project}").status == 204
    assert works.ask("POST", "/api/v1/imports", first).status in (200, 201)
    assert works.ask("GET", f"/api/v1/projects/{project}/export").json == first
    second: Any = works.ask("POST", "/api/v1/imports", first).json
    other = second["project"]["projectId"]
    third: Any = works.ask("GET", f"/api/v1/projects/{other}/export").json
    # new ids, and with them another order
    before, after = (sorted(each["tasks"], key=lambda task: task["name"]) for each in (first, third))
    known = {old["taskId"]: new["taskId"] for old, new in zip(before, after, strict=True)}
    assert not set(known) & set(known.values())
    text = json.dumps(before)
    for old, new in known.items():
        text = text.replace(old, new)
    assert json.loads(text) == after
    missing = json.loads(json.dumps(first))
    inner_task = next(each for each in missing["tasks"] if each["name"] == "Inner")
    inner_task["workflowTask"]["steps"][0]["taskId"] = "01J8ZWXQ1572KC6XGE7T74PT4P"
    assert works.ask("POST", "/api/v1/imports", missing).status == 400


def test_another_projects_task_is_no_step_for_those_who_do_not_see_it(works: Office) -> None:
    """At save; nor is it named."""
    far = command(works, "true", projectId=OTHER_PROJECT)
    kind = {"steps": [{"taskId": far}]}
    body = {"projectId": PROJECT, "name": "Far", "taskType": "WORKFLOW", "workflowTask": kind}
    answer = works.ask("POST", "/api/v1/tasks", body, by="manager")
    assert answer.status == 400
    assert answer.json["fields"] == {"workflowTask.steps[0].taskId": f"no task {far}"}


@pytest.mark.long
def test_killed_while_it_waits_a_scheduler_loses_and_approves_nothing(tmp_path: Path) -> None:
    """kill -9 while an approval is waited for, and while a step runs: it goes on where it was, once."""
    office = Office(tmp_path)
    try:
        office.start_api()
        scheduler = office.start_scheduler()
        out, go = tmp_path / "out", tmp_path / "go"
        second = command(office, f"echo ran >> {out}; until test -e {go}; do sleep 0.05; done")
        flow = start(office, workflow(office, APPROVAL, second, command(office, f"echo last >> {out}")))
        until_it_waits(office, flow)
        os.kill(scheduler.process.pid, signal.SIGKILL)
        scheduler.process.wait()
        until_it_waits(office, flow)
        assert decide(office, flow, "approve").status == 200
        assert not out.exists()
        scheduler = office.start_scheduler()
        eventually(out.exists)
        os.kill(scheduler.process.pid, signal.SIGKILL)
        scheduler.process.wait()
        go.touch()
        child = shown(office, flow)["steps"][1]["executionId"]
        assert ended(office, child)["status"] == "SUCCESS"
        assert shown(office, flow)["status"] == "RUNNING"
        office.start_scheduler()
        assert ended(office, flow)["status"] == "SUCCESS"
        assert out.read_text().split() == ["ran", "last"]
    finally:
        office.close()


@pytest.mark.long
def test_a_step_whose_carrier_is_killed_is_lost_and_its_group_gone(tmp_path: Path) -> None:
    """The workflow ends, truthfully."""
    office = Office(tmp_path)
    try:
        office.start_api()
        scheduler = office.start_scheduler()
        flow = start(office, workflow(office, command(office, "sleep 600"), command(office, "true")))
        group = eventually(lambda: group_within(office, flow))
        child = shown(office, flow)["steps"][0]["executionId"]
        carrier = eventually(lambda: holder_of(office.state / "executions" / f"{child}.lock"))
        os.kill(carrier, signal.SIGKILL)
        assert scheduler.stop() == 0
        office.start_scheduler()
        found = ended(office, flow)
        assert (found["status"], found["steps"][0]["status"]) == ("FAILED", "LOST")
        assert not is_group_alive(group)
        assert found["steps"][1]["status"] == "SKIPPED"
    finally:
        office.close()


def holder_of(path: Path) -> int:
    """The process that holds a lock file; 0 if nobody does. Source: proc(5)."""
    inode = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[5].rpartition(":")[2] == str(inode):
            return int(fields[4])
    return 0
