"""`Idempotency-Key` on a live API: many posts, one run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Answer, Fleet
from tests.support.polling import eventually


def post(fleet: Fleet, key: str, **body: object) -> Answer:
    made: dict[str, Any] = {"hosts": ["host-a"], "script": "hello"} | body
    return fleet.http("POST", "/run", made, headers={"Idempotency-Key": key})


def started(fleet: Fleet, user: str) -> int:
    """How many runs that user has started."""
    found = fleet.http("GET", f"/runs?user={user}").json["runs"]
    assert isinstance(found, list)
    return len(found)


def test_fifty_posts_at_once_are_one_run(own_fleet: Fleet, tmp_path: Path) -> None:
    """Each gets the whole answer; all but one are told that it is another's. The script ran once."""
    seen = tmp_path / "seen"
    own_fleet.agents["host-a"].script("once", f"#!/bin/sh\necho x >> {seen}\nsleep 0.3\necho done\n")
    assert own_fleet.agents["host-a"].running is not None
    own_fleet.agents["host-a"].running.stop()
    own_fleet.start_agent(own_fleet.agents["host-a"])
    own_fleet.start_api()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: post(own_fleet, "key-50", script="once"), range(50)))
    assert {each.status for each in answers} == {200}
    assert len({each.body for each in answers}) == 1
    results: Any = answers[0].json["results"]
    assert results[0]["stdout"] == "done\n"
    assert sum(each.headers.get("Idempotent-Replayed") == "true" for each in answers) == 49
    assert seen.read_text() == "x\n"
    assert len(own_fleet.records()) == 1


def test_an_async_run_is_accepted_again(fleet: Fleet, gate: Path) -> None:
    """The same reqid, while it runs and when it is over; a sync question with that key is another body."""
    body = {"script": "gate", "args": [str(gate)], "username": "key-alice", "async": True}
    first = post(fleet, "key-1", **body)
    second = post(fleet, "key-1", **body)
    assert (first.status, second.status) == (202, 202)
    assert first.json == second.json
    conflict = post(fleet, "key-1", **(body | {"async": False}))
    assert (conflict.status, conflict.json["error"]) == (409, "conflict")
    gate.touch()
    eventually(lambda: fleet.http("GET", f"/status/{first.json['reqid']}").json["complete"])
    assert post(fleet, "key-1", **body).json == first.json
    assert started(fleet, "key-alice") == 1


def test_the_body_is_the_same_however_it_is_written(fleet: Fleet) -> None:
    """Spaces and the order of keys do not matter, nor where the credentials stand; everything else does."""
    bodies = [
        b'{"hosts": ["host-a"], "script": "hello", "username": "key-bob"}',
        b'{"script":"hello","username":"key-bob","hosts":["host-a"]}',
    ]
    answers = [fleet.http("POST", "/run", body, headers={"Idempotency-Key": "key-2"}) for body in bodies]
    assert answers[0].json == answers[1].json
    assert post(fleet, "key-2", username="key-bob", args=["x"]).status == 409


def test_keys_are_their_callers_own(fleet: Fleet) -> None:
    """The same key of another user, or with another token, begins another run."""
    users: list[dict[str, object]] = [{"username": "key-eve"}, {"username": "key-eve", "token": "b"}, {}]
    reqids = {str(post(fleet, "key-3", **facts).json["reqid"]) for facts in users}
    assert len(reqids) == 3


@pytest.mark.parametrize("key", ["", "x" * 256, "k\xfc"])
def test_what_is_no_key_is_refused(fleet: Fleet, key: str) -> None:
    before = len(fleet.records())
    answer = post(fleet, key)
    assert (answer.status, answer.json["error"]) == (400, "bad request")
    assert "Idempotency-Key" in str(answer.json["detail"])
    assert len(fleet.records()) == before


def test_a_purged_run_is_told_by_its_id(own_fleet: Fleet) -> None:
    """Whoever asks again with the key learns which run it was, and begins no other."""
    own_fleet.start_api()
    first = post(own_fleet, "key-4")
    reqid = str(first.json["reqid"])
    (own_fleet.state / "runs" / f"{reqid}.json").unlink()
    again = post(own_fleet, "key-4")
    assert (again.status, again.json["error"], again.json["reqid"]) == (409, "conflict", reqid)
    assert own_fleet.records() == []
