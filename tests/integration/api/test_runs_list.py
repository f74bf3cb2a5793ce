"""`GET /runs` on a live API: who may list what, pages, and an index that is removed under load."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet
from tests.support.polling import eventually


def start(fleet: Fleet, **body: object) -> str:
    answer = fleet.http("POST", "/run", {"hosts": ["host-a"], "script": "hello"} | body)
    assert answer.status in (200, 202)
    return str(answer.json["reqid"])


def rows(fleet: Fleet, query: str = "") -> list[dict[str, Any]]:
    answer = fleet.http("GET", f"/runs{query}")
    assert answer.status == 200
    found = answer.json["runs"]
    assert isinstance(found, list)
    return found


def test_a_run_is_listed_at_once(fleet: Fleet, gate: Path) -> None:
    """While it runs, and when it is over; without what it printed and without who started it."""
    reqid = start(fleet, script="gate", args=[str(gate)], username="list-alice", **{"async": True})
    (shown,) = rows(fleet, "?user=list-alice")
    assert shown["reqid"] == reqid
    assert (shown["state"], shown["complete"], shown["mode"]) == ("running", False, "async")
    assert [each["reqid"] for each in rows(fleet, "?state=running&host=host-a&script=gate")] == [reqid]
    gate.touch()
    eventually(lambda: fleet.http("GET", f"/status/{reqid}").json["complete"])
    (shown,) = rows(fleet, "?user=list-alice")
    assert (shown["state"], shown["counts"]) == ("completed", {"ok": 1})
    assert set(shown) == {
        "reqid", "script", "args", "mode", "state", "complete", "created", "completed", "hosts", "counts",
    }  # fmt: skip
    assert rows(fleet, "?user=list-alice&state=running") == []


def test_pages(fleet: Fleet) -> None:
    """From cursor to cursor every run comes once; one that comes in between shifts nothing."""
    made = [start(fleet, username="list-bob") for _ in range(5)]
    seen: list[str] = []
    query = "?user=list-bob&limit=2"
    while True:
        answer = fleet.http("GET", f"/runs{query}").json
        assert isinstance(answer["runs"], list)
        seen += [each["reqid"] for each in answer["runs"]]
        if "cursor" not in answer:
            break
        query = f"?user=list-bob&limit=2&cursor={answer['cursor']}"
        if len(seen) == 2:
            start(fleet, username="list-bob")
    assert len(seen) == len(set(seen))
    assert set(made) <= set(seen)
    created = {each["reqid"]: each["created"] for each in rows(fleet, "?user=list-bob")}
    assert [created[each] for each in seen] == sorted((created[each] for each in seen), reverse=True)


def test_since(fleet: Fleet) -> None:
    """As epoch seconds or as a moment in UTC."""
    start(fleet, username="list-eve")
    created = rows(fleet, "?user=list-eve")[0]["created"]
    assert len(rows(fleet, f"?user=list-eve&since={created}")) == 1
    assert rows(fleet, f"?user=list-eve&since={created + 1}") == []
    assert len(rows(fleet, "?user=list-eve&since=2024-02-29T00:00:00Z")) == 1
    assert rows(fleet, "?user=list-eve&since=9999-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    "query",
    [
        "state=done", "state=", "script=a%2fb", "script=", "host=-x", "host=", "user=", "since=yesterday",
        "since=-1", "since=2026-02-30T00:00:00Z", "limit=0", "limit=1001", "limit=x", "limit=", "limit=%D9%A1",
        "cursor=", "cursor=1", "cursor=zz-" + "a" * 16, "cursor=1-../../x", "color=red", "limit=1&limit=2", "reqid=1",
    ],
)  # fmt: skip
def test_a_query_that_is_none_is_refused(fleet: Fleet, query: str) -> None:
    """Saying what was wrong; an unknown one too, for it would look as if it had been heeded."""
    answer = fleet.http("GET", f"/runs?{query}")
    assert answer.status == 400
    name = query.partition("=")[0]
    assert re.search({"host": "agent name", "script": "script"}.get(name, name), str(answer.json["detail"]))


def test_head_options_and_other_methods(fleet: Fleet) -> None:
    assert fleet.http("HEAD", "/runs").status == 200
    options = fleet.http("OPTIONS", "/runs")
    assert (options.status, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
    assert fleet.http("POST", "/runs", {}).status == 405
    assert fleet.http("DELETE", "/runs").status == 405


def test_the_hook_decides_on_whose_runs_may_be_listed(own_fleet: Fleet, tmp_path: Path) -> None:
    """It is asked once, with action `status` and the user asked for as submitter; nobody means all."""
    asked = tmp_path / "asked"
    hook = tmp_path / "hook"
    hook.write_text(
        f'#!/bin/sh\necho "$ENVEXEC_ACTION|$ENVEXEC_USERNAME|$ENVEXEC_SUBMITTER|$ENVEXEC_REQID" >> {asked}\n'
        '[ "$ENVEXEC_ACTION" = run ] || [ "$ENVEXEC_USERNAME" = root ] || [ "$ENVEXEC_SUBMITTER" = "$ENVEXEC_USERNAME" ] || exit 3\n'
    )
    hook.chmod(0o755)
    own_fleet.write_conf({"auth_hook": hook})
    own_fleet.start_api()
    reqid = start(own_fleet, username="alice")
    asked.unlink()

    def ask(query: str, user: str) -> Any:
        import base64

        word = base64.b64encode(f"{user}:x".encode()).decode()
        return own_fleet.http("GET", f"/runs{query}", headers={"Authorization": f"Basic {word}"})

    assert ask("?user=alice", "alice").json["runs"][0]["reqid"] == reqid
    denied = ask("", "alice")
    assert (denied.status, denied.json["error"]) == (403, "insufficient privilege")
    assert ask("?user=alice", "bob").status == 403
    assert ask("", "root").json["runs"][0]["reqid"] == reqid
    assert asked.read_text().splitlines() == [
        "status|alice|alice|", "status|alice||", "status|bob|alice|", "status|root||",
    ]  # fmt: skip


def test_an_index_that_is_removed_under_load_comes_back(own_fleet: Fleet) -> None:
    """Every question is answered while it goes, again and again; without a scheduler it is whole in the end."""
    own_fleet.start_api()
    made = {start(own_fleet) for _ in range(10)}
    problems: list[object] = []
    end = threading.Event()

    def ask() -> None:
        while not end.is_set():
            answer = own_fleet.http("GET", "/runs")
            if answer.status != 200:
                problems.append(answer)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for each in askers:
        each.start()
    try:
        for _ in range(6):
            made.add(start(own_fleet))
            shutil.rmtree(own_fleet.state / "runs" / "index", ignore_errors=True)
    finally:
        end.set()
        for each in askers:
            each.join()
    assert problems == []

    def is_whole() -> bool:
        answer = own_fleet.http("GET", "/runs").json
        assert isinstance(answer["runs"], list)
        return "indexing" not in answer and {each["reqid"] for each in answer["runs"]} == made

    assert eventually(is_whole)
