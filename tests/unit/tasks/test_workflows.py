"""Workflows move on as their steps end, once, with the rights of whom started them, and come to one end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.errors import ConflictError, InvalidFieldsError, StorageError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks.codec import encode_task
from ctrl_exec.tasks.definitions import change_task, remove_task
from ctrl_exec.tasks.execution import execution_requests
from ctrl_exec.tasks.execution.carriage import carried
from ctrl_exec.tasks.execution.lifecycle import NS
from ctrl_exec.tasks.execution.starting import claim_next, recover
from ctrl_exec.tasks.purge import purge_executions
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.workflow import workflows
from ctrl_exec.tasks.workflow.workflows import next_moment_ns
from tests.support.flows import OTHER, Flows
from tests.unit.tasks.conftest import Clock


@pytest.fixture
def flows(store: Store, tmp_path: Path) -> Flows:
    return Flows(store, tmp_path)


def amend(flows: Flows, task_id: str, **changes: Any) -> None:
    """Change a task as its manager."""
    change_task(flows.store, flows.root, task_id, lambda task: encode_task(task) | changes)


def test_steps_go_one_after_the_other(flows: Flows) -> None:
    """Each in an execution of its own that names its parent; the end of the last is the end of all."""
    build, ship = flows.task("Build"), flows.task("Ship")
    flow = flows.start(flows.workflow(build, ship))
    assert flows.now(flow).status == "RUNNING"
    first = flows.children(flow)[0]
    assert (first.trigger, first.parent_id, first.task_id) == ("WORKFLOW", flow, build)
    assert first.user_id == flows.users["executor"]
    assert flows.steps(flow) == ["RUNNING", "PENDING"]
    assert flows.move() == 0
    flows.end_step(flow, 1)
    assert flows.steps(flow) == ["SUCCESS", "RUNNING"]
    flows.end_step(flow, 2)
    ended = flows.now(flow)
    assert (ended.status, ended.exit_code, ended.reason) == ("SUCCESS", 0, None)
    second = flows.children(flow)[1]
    assert flows.log(flow) == [
        "workflow of 2 steps, SEQUENTIAL",
        f"step 1: task Build: started execution {first.execution_id}",
        "step 1: task Build: SUCCESS",
        f"step 2: task Ship: started execution {second.execution_id}",
        "step 2: task Ship: SUCCESS",
    ]
    assert "ACTION=task-end" in flows.printed.getvalue()


def test_steps_go_at_once(flows: Flows) -> None:
    """And it is over when all are."""
    flow = flows.start(flows.workflow(flows.task(), flows.task(), flows.task(), mode="CONCURRENT"))
    assert flows.steps(flow) == ["RUNNING"] * 3
    for place in (2, 3, 1):
        assert flows.now(flow).status == "RUNNING"
        flows.end_step(flow, place)
    assert flows.now(flow).status == "SUCCESS"


def test_a_failure_stops_or_lets_go_on(flows: Flows) -> None:
    """STOP leaves the rest out; with CONTINUE it goes on, and has failed in the end all the same."""
    steps = [flows.task("A"), flows.task("B")]
    stopped = flows.start(flows.workflow(*steps))
    flows.end_step(stopped, 1, "FAILED")
    assert flows.steps(stopped) == ["FAILED", "SKIPPED"]
    ended = flows.now(stopped)
    assert (ended.status, ended.exit_code, ended.reason) == ("FAILED", 1, "step 1: task A: FAILED, exit 3")
    assert flows.log(stopped)[-1] == "step 2: task B: SKIPPED, a step before it failed (STOP)"
    going = flows.start(flows.workflow({"taskId": steps[0], "onFailure": "CONTINUE"}, steps[1]))
    flows.end_step(going, 1, "FAILED")
    assert flows.steps(going) == ["FAILED", "RUNNING"]
    flows.end_step(going, 2)
    assert flows.now(going).reason == "step 1: task A: FAILED, exit 3"


@pytest.mark.parametrize(
    ("first", "on_failure", "expected"),
    [
        ("SUCCESS", "STOP", ["SUCCESS", "SUCCESS", "SKIPPED", "SUCCESS"]),
        ("FAILED", "STOP", ["FAILED", "SKIPPED", "SUCCESS", "SUCCESS"]),
        ("FAILED", "CONTINUE", ["FAILED", "SKIPPED", "SUCCESS", "SUCCESS"]),
    ],
)
def test_conditions_look_at_the_step_that_ran_last(
    flows: Flows, first: str, on_failure: str, expected: list[str]
) -> None:
    """FAILURE and ALWAYS go on also after a STOP; SUCCESS does not."""
    flow = flows.start(
        flows.workflow(
            {"taskId": flows.task(), "onFailure": on_failure},
            {"taskId": flows.task(), "condition": "SUCCESS"},
            {"taskId": flows.task(), "condition": "FAILURE"},
            {"taskId": flows.task(), "condition": "ALWAYS"},
        )
    )
    flows.end_step(flow, 1, first)
    for place in (2, 3, 4):
        if flows.steps(flow)[place - 1] == "RUNNING":
            flows.end_step(flow, place)
    assert flows.steps(flow) == expected
    assert flows.now(flow).status == first


def test_what_has_not_begun_is_taken_back_when_one_of_several_at_once_fails(flows: Flows) -> None:
    """What runs comes to its own end."""
    approval = {"stepType": "APPROVAL", "role": "MANAGER"}
    flow = flows.start(flows.workflow(flows.task(), flows.task(), flows.task(), approval, mode="CONCURRENT"))
    flows.carry(flows.child(flow, 2))
    flows.end_step(flow, 1, "FAILED")
    assert flows.steps(flow) == ["FAILED", "RUNNING", "SKIPPED", "SKIPPED"]
    assert flows.now(flows.child(flow, 3)).status == "ABORTED"
    flows.end_step(flow, 2)
    assert flows.now(flow).status == "FAILED"


def test_the_starter_needs_the_right_when_the_step_begins(flows: Flows) -> None:
    """A role that is lost between two steps fails the next one by name."""
    flow = flows.start(flows.workflow(flows.task("A"), flows.task("B")))
    flows.set_roles("home", {"executor": "VIEWER"})
    flows.end_step(flow, 1)
    ended = flows.now(flow)
    assert ended.reason == "step 2: task B: FAILED, not started: the role EXECUTOR in home is needed"
    assert len(flows.children(flow)) == 1


def test_a_step_in_a_project_of_which_the_starter_knows_nothing(flows: Flows) -> None:
    """Its name stays there; a user that is off has no rights at all."""
    far = flows.task("Hidden", projectId=OTHER)
    flow = flows.start(flows.workflow(far))
    assert flows.now(flow).reason == f"step 1: task {far}: FAILED, not started: no task {far}"
    allowed = flows.start(flows.workflow(far), by="admin")
    assert flows.steps(allowed) == ["RUNNING"]
    late = flows.start(flows.workflow(flows.task("A"), flows.task("B")))
    flows.store.execute("UPDATE users SET is_enabled = 0 WHERE user_id = ?", (flows.users["executor"],))
    flows.end_step(late, 1)
    reason = "step 2: task B: FAILED, not started: the user whose rights it has is off or gone"
    assert flows.now(late).reason == reason


def test_a_workflow_holds_what_its_author_may_run(flows: Flows) -> None:
    """To see a task of another project is not enough: the owner's rights may be more than theirs."""
    far = flows.task("Hidden", projectId=OTHER)
    roles: tuple[tuple[dict[str, str], str], ...] = (
        ({}, f"no task {far}"),
        ({"manager": "VIEWER"}, "the role EXECUTOR in elsewhere is needed"),
    )
    for each, expected in roles:
        flows.set_roles(OTHER, each)
        with pytest.raises(InvalidFieldsError) as caught:
            flows.workflow(far, by="manager")
        assert caught.value.fields == {"workflowTask.steps[0].taskId": expected}
    flows.set_roles(OTHER, {"manager": "EXECUTOR"})
    flow = flows.start(flows.workflow(far, by="manager"), by="manager")
    flows.end_step(flow, 1, "FAILED")
    assert flows.now(flow).reason == f"step 1: task {far}: FAILED, exit 3"


def test_the_longest_time_limits_are_no_fault(flows: Flows) -> None:
    """They end with the calendar that the database has."""
    longest = {"timeout": 10**6, "timeoutDurationUnit": "DAY"}
    flow = flows.start(flows.workflow({"stepType": "APPROVAL", "role": "MANAGER", **longest}, **longest))
    assert flows.steps(flow) == ["RUNNING"]
    assert flows.shown(flow)["steps"][0]["untilTs"] == 2**63 - 1


def test_a_token_for_one_project_starts_nothing_in_another(flows: Flows) -> None:
    """Not through a workflow either, nor in what is nested; the prompt may everything, as ever."""
    far = flows.task("Hidden", projectId=OTHER)
    inner = flows.workflow(far, name="Inner")
    outer = flows.workflow(inner, name="Outer")
    narrow = replace(flows.identity("admin"), project_ids=("home",))
    flow = flows.start(outer, identity=narrow)
    assert str(flows.now(flow).reason).startswith("step 1: task Inner: FAILED, exit 1, step 1: task")
    assert f"no task {far}" in str(flows.now(flow).reason)
    assert flows.steps(flows.start(inner, identity=flows.root)) == ["RUNNING"]


def test_whoever_may_run_may_run_local_commands_by_a_workflow(flows: Flows) -> None:
    """Changing them stays with administrators."""
    kind = {"program": "/bin/true"}
    command = flows.task(taskType="LOCAL_COMMAND", agentScriptTask=None, localCommandTask=kind)
    assert flows.steps(flows.start(flows.workflow(command))) == ["RUNNING"]


def test_the_clock_starts_with_the_rights_of_the_owner(flows: Flows) -> None:
    """Who lost them since."""
    from ctrl_exec.tasks.execution.executions import Start, request_execution

    flow_task = flows.workflow(flows.task("A"), by="manager")
    owned = request_execution(flows.store, Start(flow_task, "SCHEDULE", flows.users["manager"]))
    flows.set_roles("home", {})
    flows.move()
    assert "not started: no task" in str(flows.now(owned.execution_id).reason)


def test_a_step_has_its_parameters_or_fails_by_name(flows: Flows) -> None:
    """Checked at save, and again when its task has changed since."""
    task = flows.task("A", parameters=[{"name": "N", "type": "INTEGER", "max": 9, "required": True}])
    for wrong in ({}, {"N": 10}, {"N": "1"}, {"N": 1, "M": 1}):
        with pytest.raises(InvalidFieldsError, match=r"workflowTask\.steps\[0\]\.parameterMap\."):
            flows.workflow({"taskId": task, "parameterMap": wrong})
    flow_task = flows.workflow({"taskId": task, "parameterMap": {"N": 5}})
    flow = flows.start(flow_task)
    assert flows.children(flow)[0].parameter_map == {"N": 5}
    flows.end_step(flow, 1)
    amend(flows, task, parameters=[{"name": "N", "type": "INTEGER", "max": 4}])
    again = flows.now(flows.start(flow_task))
    assert again.reason == ("step 1: task A: FAILED, not started: parameterMap.N: expected an integer to 4")
    amend(flows, task, parameters=[{"name": "N", "type": "SECRET"}])
    assert "expected a string" in str(flows.now(flows.start(flow_task)).reason)


def test_the_policy_of_a_steps_task_counts(flows: Flows) -> None:
    """What it refuses fails the step; what is off too."""
    task = flows.task("A")
    flow_task = flows.workflow(task)
    flows.start(task)
    refused = flows.now(flows.start(flow_task))
    assert "step 1: task A: FAILED, not started: REJECT: execution" in str(refused.reason)
    off = flows.task("B")
    flow_task = flows.workflow(off)
    amend(flows, off, enabledFg=False)
    assert "it is off" in str(flows.now(flows.start(flow_task)).reason)


def test_attempts_of_a_step_are_followed_to_the_last(flows: Flows) -> None:
    """A retry of its task is the step's."""
    flow = flows.start(flows.workflow(flows.task("A", retry={"maxAttempts": 2})))
    first = flows.child(flow, 1)
    flows.end_step(flow, 1, "FAILED")
    second = flows.child(flow, 1)
    assert second != first
    assert flows.steps(flow) == ["RUNNING"]
    flows.end_step(flow, 1)
    assert flows.now(flow).status == "SUCCESS"
    assert f"step 1: task A: FAILED, is tried again as execution {second}" in flows.log(flow)


def test_an_abort_ends_what_is_under_way_and_begins_nothing_more(flows: Flows) -> None:
    """It is ABORTED only when its steps are gone."""
    flow = flows.start(flows.workflow(flows.task(), flows.task()))
    child = flows.child(flow, 1)
    flows.carry(child)
    flows.abort(flow)
    assert flows.now(flow).status == "ABORTING"
    assert flows.now(child).status == "ABORTING"
    assert flows.move() == 0
    flows.end(child, "ABORTED", None)
    ended = flows.now(flow)
    assert (ended.status, ended.reason) == ("ABORTED", "aborted")
    assert flows.steps(flow) == ["ABORTED", "SKIPPED"]
    waiting = flows.start(flows.workflow(flows.task(), flows.task()))
    flows.abort(waiting)
    assert flows.now(waiting).status == "ABORTED"


def test_an_abort_reaches_what_is_nested(flows: Flows) -> None:
    """Through every level."""
    inner = flows.workflow(flows.task(), {"stepType": "APPROVAL", "role": "MANAGER"}, mode="CONCURRENT")
    flow = flows.start(flows.workflow(flows.workflow(inner)))
    middle = flows.child(flow, 1)
    innermost = flows.child(middle, 1)
    flows.carry(flows.child(innermost, 1))
    flows.abort(flow)
    assert flows.steps(innermost) == ["RUNNING", "ABORTED"]
    flows.end_step(innermost, 1, "ABORTED")
    assert [flows.now(each).status for each in (innermost, middle, flow)] == ["ABORTED"] * 3


def test_at_its_time_limit_it_is_ended(flows: Flows, clock: Clock) -> None:
    """With its steps; what it waits for is known to the clock."""
    flow = flows.start(flows.workflow(flows.task(), timeout=5, timeoutDurationUnit="MINUTE"))
    child = flows.child(flow, 1)
    flows.carry(child)
    at_ns = next_moment_ns(flows.store)
    assert at_ns is not None
    clock.now_ns = at_ns
    flows.move()
    assert flows.now(child).status == "ABORTING"
    assert next_moment_ns(flows.store) is None
    flows.end(child, "ABORTED", None)
    ended = flows.now(flow)
    assert (ended.status, ended.exit_code, ended.reason) == ("TIMED_OUT", 126, "timed out after 300s")


def test_a_lost_step_fails_and_nothing_is_started_twice(flows: Flows) -> None:
    """Its carrier died; the workflow has none that could."""
    flow = flows.start(flows.workflow(flows.task("A"), flows.task("B")))
    flows.carry(flows.child(flow, 1))
    assert [each.execution_id for each in carried(flows.store)] == [flows.child(flow, 1)]
    found = recover(flows.store, flows.files, end_group=lambda *_: True)
    assert found.lost == (flows.child(flow, 1),)
    flows.move()
    ended = flows.now(flow)
    assert ended.reason == "step 1: task A: LOST, the process that carried it died"
    assert len(flows.children(flow)) == 1


def test_a_workflow_takes_no_place(flows: Flows) -> None:
    """With one place in all its steps run, those of what is nested too."""
    flow = flows.start(flows.workflow(flows.workflow(flows.task(), flows.task())))
    for _ in range(2):
        child = claim_next(flows.store, "me", max_running=1)
        assert child is not None
        assert claim_next(flows.store, "me", max_running=1) is None
        from ctrl_exec.tasks.execution import carriage

        carriage.begin(flows.store, child, "me")
        flows.end(child)
    assert flows.now(flow).status == "SUCCESS"


def test_the_workflows_own_policy_holds(flows: Flows) -> None:
    """SMART_CHAINING: the second waits for the first, and says so."""
    task = flows.workflow(flows.task(), multipleExecutionPolicy="SMART_CHAINING")
    first, second = flows.start(task), flows.start(task)
    assert flows.shown(second)["waitsFor"] == f"execution {first} of the same task"
    flows.end_step(first, 1)
    assert flows.now(second).status == "RUNNING"


def test_a_workflow_is_tried_again_as_its_task_says(flows: Flows) -> None:
    """From its first step, with the same rights."""
    task = flows.workflow(flows.task("A"), retry={"maxAttempts": 2})
    flow = flows.start(task, identity=replace(flows.identity("admin"), project_ids=("home",)))
    flows.end_step(flow, 1, "FAILED")
    again = flows.store.rows("SELECT * FROM executions WHERE retry_of = ?", (flow,))
    assert [(each["attempt"], each["rights"], each["status"]) for each in again] == [
        (2, '["home"]', "RUNNING")
    ]


def test_what_is_nested_ends_its_step(flows: Flows) -> None:
    """As any other execution would."""
    inner = flows.workflow(flows.task("A"), name="Inner")
    flow = flows.start(flows.workflow(inner))
    flows.end_step(flows.child(flow, 1), 1, "FAILED")
    reason = "step 1: task Inner: FAILED, exit 1, step 1: task A: FAILED, exit 3"
    assert flows.now(flow).reason == reason


def test_a_task_that_is_a_step_is_not_removed(flows: Flows) -> None:
    """Of any workflow; one that only speaks of it holds up nobody."""
    task = flows.task()
    flow = flows.workflow({"stepType": "APPROVAL", "role": "MANAGER"}, task)
    flows.workflow(flows.task(), name=f"Before {task}", description=task)
    with pytest.raises(ConflictError, match="has this task as a step"):
        remove_task(flows.store, flows.root, task)
    remove_task(flows.store, flows.root, flow)
    remove_task(flows.store, flows.root, task)


def test_circles_and_depths_are_refused_at_save(flows: Flows) -> None:
    """Also where one of the tasks on the way is not to be seen."""
    task = flows.workflow(flows.task())
    above = flows.workflow(task)
    with pytest.raises(InvalidFieldsError, match="would execute itself"):
        amend(flows, task, workflowTask={"steps": [{"taskId": above}]})
    with pytest.raises(InvalidFieldsError, match="would execute itself"):
        amend(flows, task, workflowTask={"steps": [{"taskId": task}]})
    chain = flows.task()
    for _ in range(10):
        chain = flows.workflow(chain)
    with pytest.raises(InvalidFieldsError, match="nested more than 10 deep"):
        flows.workflow(chain)
    many = flows.task()
    for _ in range(2):
        many = flows.workflow(*[many] * 60)
    with pytest.raises(InvalidFieldsError, match="more than 10000 executions"):
        flows.workflow(many, many, many)


def test_circles_and_depths_are_refused_at_start(flows: Flows) -> None:
    """What the database says may have come about otherwise."""
    leaf = flows.task()
    inner = flows.workflow(leaf, name="Inner")
    outer = flows.workflow(inner, name="Outer")
    flows.store.execute(
        "UPDATE tasks SET definition = replace(definition, ?, ?) WHERE task_id = ?", (leaf, outer, inner)
    )
    flow = flows.now(flows.start(outer))
    assert (flow.status, flow.reason) == ("FAILED", "the workflow would execute itself")
    assert flows.steps(flow.execution_id) == ["SKIPPED"]
    assert flows.children(flow.execution_id) == []


def test_a_circle_that_closes_while_it_runs_ends_there(flows: Flows) -> None:
    """The ancestors of an execution are looked at too."""
    leaf = flows.task()
    inner = flows.workflow(leaf, leaf, name="Inner")
    outer = flows.workflow(flows.task("First"), inner, name="Outer", multipleExecutionPolicy="CONCURRENCY",
                           maxConcurrency=9)  # fmt: skip
    flow = flows.start(outer)
    flows.store.execute(
        "UPDATE tasks SET definition = replace(definition, ?, ?) WHERE task_id = ?", (leaf, outer, inner)
    )
    flows.end_step(flow, 1)
    assert str(flows.now(flow).reason).endswith("the workflow would execute itself")


def test_a_changed_definition_is_the_next_ones(flows: Flows) -> None:
    """What has begun goes on as it was; a step whose task is gone fails."""
    gone = flows.task("Gone")
    task = flows.workflow(flows.task("A"), gone)
    flow = flows.start(task)
    amend(flows, task, workflowTask={"steps": [{"taskId": flows.task("C")}]})
    flows.store.execute("DELETE FROM tasks WHERE task_id = ?", (gone,))
    flows.end_step(flow, 1)
    assert flows.now(flow).reason == f"step 2: task {gone}: FAILED, not started: no task {gone}"


def test_what_a_workflow_waits_for_is_not_removed(flows: Flows, clock: Clock) -> None:
    """Neither by hand nor by age; what is gone all the same counts as lost."""
    flow = flows.start(flows.workflow(flows.task("A"), {"stepType": "APPROVAL", "role": "MANAGER"}))
    child = flows.child(flow, 1)
    flows.end_step(flow, 1)
    with pytest.raises(ConflictError, match="under way"):
        execution_requests.remove(flows.store, flows.root, child, flows.files)
    clock.now_ns += 400 * 86400 * NS
    assert purge_executions(flows.store, flows.files, 1) == 0
    lost = flows.start(flows.workflow(flows.task("B")))
    flows.store.execute("DELETE FROM executions WHERE execution_id = ?", (flows.child(lost, 1),))
    flows.move()
    assert "step 1: task B: LOST, execution" in str(flows.now(lost).reason)


def test_a_workflow_that_can_not_be_moved_fails_and_holds_up_no_other(flows: Flows) -> None:
    """It must not stay RUNNING, nor its steps."""
    broken = flows.start(flows.workflow(flows.task()))
    child = flows.child(broken, 1)
    fine = flows.start(flows.workflow(flows.task()))
    flows.store.execute("UPDATE workflows SET definition = 'x' WHERE execution_id = ?", (broken,))
    flows.carry(child)
    flows.abort(broken)
    flows.end_step(fine, 1)
    assert flows.now(fine).status == "SUCCESS"
    assert (flows.now(broken).status, flows.now(child).status) == ("FAILED", "ABORTING")
    assert "ACTION=task-end" in flows.printed.getvalue()


def test_two_that_look_at_once_do_nothing_twice(flows: Flows) -> None:
    """What another one has done already is done."""
    flow = flows.start(flows.workflow(flows.task(), flows.task()))
    with Store(flows.store.path) as other:
        seen = workflows._due(other)
        flows.end_step(flow, 1)
        assert seen == []
        parts = replace(flows.parts, store=other)
        assert workflows.move_on(parts) == 0
        assert workflows._moved(parts, workflows._begin, flow) is False
    assert len(flows.children(flow)) == 2


def test_the_log_is_whole_again_after_a_crash(flows: Flows) -> None:
    """The database has it; the file follows at the next move."""
    flow = flows.start(flows.workflow(flows.task("A"), flows.task("B")))
    Path(flows.files.log_path(flow)).write_text("torn")
    flows.end_step(flow, 1)
    assert flows.log(flow)[0] == "workflow of 2 steps, SEQUENTIAL"
    assert len(flows.log(flow)) == 4


def test_without_its_secrets_a_log_shows_nothing_and_the_workflow_goes_on(flows: Flows) -> None:
    """What can't be masked is left out, which is said."""

    def fail(_execution: object) -> tuple[str, ...]:
        raise StorageError("no key", path="secrets.key")

    flows.parts = replace(flows.parts, secrets=fail)
    flow = flows.start(flows.workflow(flows.task("A")))
    flows.end_step(flow, 1)
    assert flows.now(flow).status == "SUCCESS"
    text = Path(flows.files.log_path(flow)).read_text()
    said = "[left out, for the secrets to mask can't be read: {}]\n"
    assert text == said.format(2) + said.format(1)
    assert "secrets.key: no key" in flows.printed.getvalue()


def test_a_log_that_can_not_be_written_ends_no_workflow(flows: Flows) -> None:
    """The log of the program says so."""
    Path(flows.files.directory).write_text("no directory")
    flow = flows.start(flows.workflow(flows.task("A")))
    flows.end_step(flow, 1)
    assert flows.now(flow).status == "SUCCESS"
    assert "ACTION=task-log" in flows.printed.getvalue()


def test_notifiers_are_told_of_a_workflow_as_of_any_task(flows: Flows) -> None:
    """Of its start and its failure; of its steps what their own tasks say."""
    known = {"created_ns": 1, "updated_ns": 1, "kind": "WEBHOOK", "settings": "{}"}
    notifier = {"notifier_id": "01J8ZX2M5T0Q4W8E7R6Y5T4P3F", "project_id": "home", "name": "n"}
    flows.store.insert("notifiers", notifier | known)
    told = {notifier["notifier_id"]: {"events": ["ON_START", "ON_FAILURE"]}}
    flow = flows.start(flows.workflow(flows.task(), taskNotifierMap=told))
    flows.end_step(flow, 1, "FAILED")
    rows = flows.store.rows("SELECT event, document FROM notices ORDER BY rowid")
    assert [(row["event"], json.loads(row["document"])["executionId"]) for row in rows] == [
        ("ON_START", flow),
        ("ON_FAILURE", flow),
    ]


def test_looking_is_cheap_where_thousands_wait(flows: Flows) -> None:
    """Neither what waits nor what is over is read row by row."""
    queries = ((workflows._WAITING, (0, 1)), (workflows._DUE, (0, 1)), (workflows._NEXT, (0,)))
    for sql, marks in queries:
        plan = [row["detail"] for row in flows.store.rows(f"EXPLAIN QUERY PLAN {sql}", marks)]
        scans = [each for each in plan if each.startswith("SCAN") and "subquery" not in each.lower()]
        assert [each for each in scans if "tasks_that_are_workflows" not in each] == []
