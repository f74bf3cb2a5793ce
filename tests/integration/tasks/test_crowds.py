"""Many ask for the same task at the same moment: its policy holds, whoever comes first."""

from __future__ import annotations

import http.client
import json
import multiprocessing
from collections import Counter
from typing import Any

import pytest

from tests.support.office import Office

CROWD = 8


def ask(port: int, token: str, task_id: str, barrier: Any, out: Any) -> None:
    """One of the crowd: says the status of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.connect()
        barrier.wait(60)
        connection.request("POST", "/api/v1/executions", json.dumps({"taskId": task_id}), headers)
        answer = connection.getresponse()
        answer.read()
        out.put(answer.status)
    except Exception as error:  # the test says what it was
        out.put(repr(error))
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("policy", "fields", "taken", "left"),
    [
        ("REJECT", {}, 1, {"PENDING": 1}),
        ("SMART_CHAINING", {}, 1, {"PENDING": 1}),
        ("REPLACEMENT", {}, CROWD, {"PENDING": 1, "ABORTED": CROWD - 1}),
        ("CONCURRENCY", {"maxConcurrency": 5}, 5, {"PENDING": 5}),
    ],
)
def test_policies_hold_in_a_crowd(
    office: Office, policy: str, fields: dict[str, Any], taken: int, left: dict[str, int]
) -> None:
    """Nobody carries executions here, so that how many are taken is certain."""
    task_id = office.create_task(multipleExecutionPolicy=policy, **fields)["taskId"]
    context = multiprocessing.get_context("fork")
    barrier, out = context.Barrier(CROWD), context.SimpleQueue()
    words = (office.api_port, office.tokens["admin"], task_id, barrier, out)
    crowd = [context.Process(target=ask, args=words) for _ in range(CROWD)]
    for each in crowd:
        each.start()
    said = Counter(out.get() for _ in crowd)
    for each in crowd:
        each.join(60)
        each.close()
    assert said == Counter({201: taken, 409: CROWD - taken}) - Counter({409: 0}), said
    items: Any = office.ask("GET", f"/api/v1/executions?taskId={task_id}").json["items"]
    assert Counter(each["status"] for each in items) == left
