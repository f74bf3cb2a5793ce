"""Records on disk that nobody of ours would write: one of them spoils nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet

STRANGE: tuple[Any, ...] = (
    None, True, -1, 10**400, float("inf"), float("nan"), "", "9" * 5000 + "ms", "\ud800", [], [[]], {}, {"a": {}},
    [{"host": "a", "state": "ok", "rtt": "9" * 5000 + "ms"}], [{"host": "a", "state": "ok", "exit": 1.5}],
)  # fmt: skip
AGENT = {"hostname": "web-01", "ip": "127.0.0.9", "port": 7443, "lookup_by": "ip", "tags": {"a": "b"}}
RUN: dict[str, Any] = {
    "reqid": "0", "script": "deploy", "args": [], "mode": "sync", "state": "completed", "complete": True,
    "created": 1, "completed": 2, "submitter": {}, "hosts": ["a"], "ports": {}, "results": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An API without agents."""
    fleet = Fleet(tmp_path_factory.mktemp("strange"))
    try:
        fleet.start_api()
        yield fleet
    finally:
        fleet.close()


@pytest.mark.parametrize("key", [key for key in RUN if key != "reqid"])
def test_a_run_record_is_shown_or_refused_in_words(served: Fleet, key: str) -> None:
    """Whatever one of its fields holds."""
    assert served.api is not None
    for number, strange in enumerate(STRANGE):
        reqid = f"{number:016x}"
        path = served.state / "runs" / f"{reqid}.json"
        path.write_text(json.dumps(RUN | {"reqid": reqid, key: strange}))
        assert served.http("GET", f"/status/{reqid}").status in (200, 404, 500), strange
    assert "ACTION=crash" not in served.api.log()


@pytest.mark.parametrize("key", AGENT)
def test_an_agent_record_hides_no_other(served: Fleet, key: str) -> None:
    """Whatever one of its fields holds, the fleet can be listed."""
    folder = Path(served.state / "agents")
    (folder / "web-02.json").write_text(json.dumps(AGENT))
    for number, strange in enumerate(STRANGE):
        (folder / f"odd-{number}.json").write_text(json.dumps(AGENT | {key: strange}))
    listed = served.cli_json("list-agents")
    assert "web-02" in json.dumps(listed)
    assert served.http("POST", "/ping", {"hosts": ["no-such"]}).status == 404
    assert served.http("POST", "/ping", {"hosts": ["@a=none"]}).status == 404
