"""Approvals: given once, by the role that is named, in time; nothing else lets a workflow go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.errors import ConflictError, DeniedError, InvalidFieldsError, NotFoundError
from ctrl_exec.tasks.audit import list_entries
from ctrl_exec.tasks.execution.lifecycle import NS
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.workflow.workflows import next_moment_ns
from tests.support.flows import OTHER, SECRET, Flows
from tests.unit.tasks.conftest import Clock


@pytest.fixture
def flows(store: Store, tmp_path: Path) -> Flows:
    return Flows(store, tmp_path)


def approval(**changes: Any) -> dict[str, Any]:
    """A step that waits for a manager."""
    return {"stepType": "APPROVAL", "role": "MANAGER", "name": "Go?"} | changes


def test_it_waits_and_says_for_what(flows: Flows) -> None:
    """Itself, and those that have it as a step."""
    inner = flows.workflow(approval())
    flow = flows.start(flows.workflow(inner))
    child = flows.child(flow, 1)
    assert flows.shown(child)["waitsFor"] == "step 1: approval Go? by MANAGER"
    assert flows.shown(flow)["waitsFor"] == f"execution {child}: step 1: approval Go? by MANAGER"
    assert flows.move() == 0
    flows.decide(child, "APPROVED")
    assert "waitsFor" not in flows.shown(child)
    assert flows.now(flow).status == "SUCCESS"


def test_what_another_project_calls_its_approval_is_not_told(flows: Flows) -> None:
    """Only that one is waited for there."""
    inner = flows.workflow(approval(), projectId=OTHER)
    flow = flows.start(flows.workflow(inner), by="admin")
    child = flows.child(flow, 1)
    assert flows.shown(child)["waitsFor"] == "step 1: approval Go? by MANAGER"
    assert flows.shown(flow)["waitsFor"] == f"execution {child}: an approval"


def test_approved_it_goes_on(flows: Flows) -> None:
    """Who it was and what they said is in the log, the steps and the audit; secrets are masked."""
    flow = flows.start(flows.workflow(approval(), flows.task("A")))
    flows.decide(flow, "APPROVED", comment=f"fine, {SECRET}")
    step = flows.shown(flow)["steps"][0]
    assert (step["status"], step["decidedBy"], step["comment"]) == ("SUCCESS", "manager", "fine, ********")
    assert "step 1: approval Go?: approved by manager: fine, ********" in flows.log(flow)
    assert flows.steps(flow) == ["SUCCESS", "RUNNING"]
    (entry,) = list_entries(flows.store, {"action": "approve"})
    assert (entry.object_id, entry.username) == (flow, "manager")
    assert entry.after == {"step": 1, "name": "Go?", "role": "MANAGER", "comment": "fine, ********"}


def test_rejected_it_fails_as_any_step(flows: Flows) -> None:
    """And its onFailure decides."""
    flow = flows.start(flows.workflow(approval(), flows.task("A")))
    flows.decide(flow, "REJECTED", comment="not today")
    assert flows.steps(flow) == ["FAILED", "SKIPPED"]
    assert flows.now(flow).reason == "step 1: approval Go?: FAILED, rejected by manager: not today"
    (entry,) = list_entries(flows.store, {"action": "reject"})
    assert entry.after is not None
    going = flows.start(flows.workflow(approval(onFailure="CONTINUE"), flows.task("B")))
    flows.decide(going, "REJECTED")
    assert flows.steps(going) == ["FAILED", "RUNNING"]


def test_only_the_named_role_or_a_stronger_one_may(flows: Flows) -> None:
    """Who has no role in the project finds nothing there."""
    flow = flows.start(flows.workflow(approval(role="ADVANCED_EXECUTOR")))
    for who in ("viewer", "executor"):
        with pytest.raises(DeniedError, match="the role ADVANCED_EXECUTOR in home is needed"):
            flows.decide(flow, "APPROVED", by=who)
    with pytest.raises(NotFoundError):
        flows.decide(flow, "APPROVED", by="stranger")
    assert flows.steps(flow) == ["RUNNING"]
    flows.decide(flow, "APPROVED", by="advanced_executor")
    for who in ("manager", "admin"):
        flow = flows.start(flows.workflow(approval(role="ADVANCED_EXECUTOR")))
        flows.decide(flow, "APPROVED", by=who)
        assert flows.now(flow).status == "SUCCESS"


def test_it_is_decided_once(flows: Flows) -> None:
    """The first word stands, before anything follows from it; what waits for nothing is refused."""
    from ctrl_exec.tasks.workflow import approvals

    flow = flows.start(flows.workflow(approval()))
    approvals.decide(flows.store, flows.identity("manager"), flow, {}, "REJECTED", lambda _: ())
    with pytest.raises(ConflictError, match="waits for no approval"):
        flows.decide(flow, "APPROVED")
    flows.move()
    assert flows.now(flow).status == "FAILED"
    with pytest.raises(ConflictError):
        flows.decide(flow, "APPROVED")
    plain = flows.start(flows.task())
    with pytest.raises(ConflictError):
        flows.decide(plain, "APPROVED")


def test_its_time_ends_it(flows: Flows, clock: Clock) -> None:
    """A word that comes after that counts no more."""
    step = approval(timeout=2, timeoutDurationUnit="HOUR")
    flow = flows.start(flows.workflow(step))
    assert flows.log(flow)[-1] == "step 1: approval Go?: waits for MANAGER, within 2 HOUR"
    at_ns = next_moment_ns(flows.store)
    assert at_ns == flows.shown(flow)["steps"][0]["untilTs"]
    clock.now_ns = at_ns
    with pytest.raises(ConflictError, match="time"):
        flows.decide(flow, "APPROVED")
    flows.move()
    assert flows.now(flow).reason == "step 1: approval Go?: TIMED_OUT, nobody decided in time"
    assert next_moment_ns(flows.store) is None


def test_a_word_in_time_counts_though_nobody_looked_before_it_was_over(flows: Flows, clock: Clock) -> None:
    """The scheduler was away."""
    from ctrl_exec.tasks.workflow import approvals

    flow = flows.start(flows.workflow(approval(timeout=2, timeoutDurationUnit="HOUR")))
    approvals.decide(flows.store, flows.identity("manager"), flow, {}, "APPROVED", lambda _: ())
    clock.now_ns += 3 * 3600 * NS
    flows.move()
    assert flows.now(flow).status == "SUCCESS"


def test_of_several_one_is_named(flows: Flows) -> None:
    """Unless only one of them is theirs to decide."""
    steps = (approval(), approval(role="EXECUTOR"), approval(name="Sure?"))
    flow = flows.start(flows.workflow(*steps, mode="CONCURRENT"))
    with pytest.raises(InvalidFieldsError, match="step: required, several wait: 1, 2, 3"):
        flows.decide(flow, "APPROVED")
    flows.decide(flow, "APPROVED", by="executor")
    assert flows.steps(flow) == ["RUNNING", "SUCCESS", "RUNNING"]
    with pytest.raises(DeniedError):
        flows.decide(flow, "APPROVED", by="executor", step=1)
    with pytest.raises(ConflictError, match="step 2 of execution"):
        flows.decide(flow, "APPROVED", step=2)
    flows.decide(flow, "APPROVED", step=3)
    flows.decide(flow, "APPROVED")
    assert flows.now(flow).status == "SUCCESS"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"comment": 1}, "comment"),
        ({"comment": "x" * 1001}, "comment"),
        ({"comment": "a\nb"}, "comment"),
        ({"step": "1"}, "step"),
        ({"step": 0}, "step"),
        ({"who": "me"}, "who"),
    ],
)
def test_a_bad_word_is_refused_by_name(flows: Flows, document: dict[str, Any], field: str) -> None:
    """And decides nothing."""
    flow = flows.start(flows.workflow(approval()))
    with pytest.raises(InvalidFieldsError) as caught:
        flows.decide(flow, "APPROVED", **document)
    assert list(caught.value.fields) == [field]
    assert flows.steps(flow) == ["RUNNING"]


@pytest.mark.parametrize(
    "changes",
    [
        {"timeout": 5},
        {"timeoutDurationUnit": "HOUR"},
        {"timeout": 0, "timeoutDurationUnit": "HOUR"},
        {"timeout": 1, "timeoutDurationUnit": "WEEK"},
        {"taskId": "01J8ZWXQ1572KC6XGE7T74PT4P"},
        {"role": "ADMINISTRATOR"},
    ],
)
def test_a_bad_approval_is_not_saved(flows: Flows, changes: dict[str, Any]) -> None:
    """Its keys are its own."""
    with pytest.raises(InvalidFieldsError, match=r"workflowTask\.steps\[0\]"):
        flows.workflow(approval(**changes))


def test_an_abort_ends_the_waiting(flows: Flows) -> None:
    """Nothing is approved by it, nor after it."""
    flow = flows.start(flows.workflow(approval(), flows.task()))
    flows.abort(flow)
    assert flows.now(flow).status == "ABORTED"
    assert flows.steps(flow) == ["ABORTED", "SKIPPED"]
    with pytest.raises(ConflictError):
        flows.decide(flow, "APPROVED")
