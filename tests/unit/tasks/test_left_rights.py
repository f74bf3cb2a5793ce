"""What a token that is limited to projects leaves behind stays within its limits when it starts something."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ctrl_exec.common.value import replace
from ctrl_exec.tasks.clock.timers import list_timers
from ctrl_exec.tasks.codec import encode_task
from ctrl_exec.tasks.definitions import change_task, create_task
from ctrl_exec.tasks.execution.executions import claim_start
from ctrl_exec.tasks.inbound.deliveries import Delivery, authenticate, deliver
from ctrl_exec.tasks.inbound.webhooks import load_webhook, save_webhook
from ctrl_exec.tasks.models import Webhook
from ctrl_exec.tasks.people.identity import Identity
from ctrl_exec.tasks.sealing import Sealer
from ctrl_exec.tasks.store import Store
from tests.support.flows import OTHER, PROJECT, Flows
from tests.unit.tasks.conftest import NOW_NS

SECRET = "known to its sender"
minutes = itertools.count(1)


@pytest.fixture
def flows(store: Store, tmp_path: Path) -> Flows:
    return Flows(store, tmp_path)


@pytest.fixture
def outer(flows: Flows) -> str:
    """A scheduled workflow, saved with a narrow token, that leads to a task of another project."""
    inner = flows.workflow(flows.task("Hidden", projectId=OTHER), name="Inner")
    document = {
        "projectId": PROJECT, "name": "Outer", "taskType": "WORKFLOW", "scheduledFg": True,
        "cronExpression": "* * * * *", "workflowTask": {"steps": [{"taskId": inner}]},
    }  # fmt: skip
    return create_task(flows.store, narrow(flows), document).task_id


def narrow(flows: Flows) -> Identity:
    """An administrator by a token for one project."""
    return replace(flows.identity("admin"), project_ids=(PROJECT,))


def is_refused(flows: Flows, execution_id: str | None) -> bool:
    """Whether what is started in the other project was not."""
    assert execution_id is not None
    flows.move()
    return "not started: no task" in str(flows.now(execution_id).reason)


def start_by_clock(flows: Flows, task_id: str) -> str:
    """Have the scheduler start it."""
    (timer,) = list_timers(flows.store, task_id)
    due_ns = NOW_NS + next(minutes) * 60 * 10**9
    made = claim_start(flows.store, timer, due_ns, parameter_map={})
    assert made is not None
    return made.execution_id


def test_by_the_clock(flows: Flows, outer: str) -> None:
    """Until its owner saves it without these limits; nobody else's rights widen its owner's."""
    assert is_refused(flows, start_by_clock(flows, outer))
    change_task(flows.store, flows.identity("manager"), outer, encode_task)
    assert is_refused(flows, start_by_clock(flows, outer))
    change_task(flows.store, flows.identity("admin"), outer, encode_task)
    assert not is_refused(flows, start_by_clock(flows, outer))


def test_by_a_delivery(flows: Flows, outer: str, tmp_path: Path) -> None:
    """Until it is saved without these limits; the prompt, in its user's name, does not."""
    sealer = Sealer(str(tmp_path / "secrets.key"))

    def save(identity: Identity, draft: Webhook) -> Webhook:
        return save_webhook(flows.store, identity, sealer, draft, SECRET)

    def start(webhook: Webhook) -> str | None:
        headers = {"authorization": f"Bearer {SECRET}"}
        delivery = Delivery(webhook.webhook_id, headers, b"")
        return deliver(flows.store, *authenticate(flows.store, sealer, delivery), delivery).execution_id

    webhook = save(narrow(flows), Webhook("", PROJECT, outer, "From outside", "GENERIC"))
    assert load_webhook(flows.store, webhook.webhook_id) == webhook
    assert is_refused(flows, start(webhook))
    webhook = save(replace(flows.root, user_id=webhook.user_id), webhook)
    assert is_refused(flows, start(webhook))
    webhook = save(flows.identity("admin"), webhook)
    assert not is_refused(flows, start(webhook))
