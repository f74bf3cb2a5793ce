"""Every request and response example of the seed, key by key, against a live API with real agents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ctrl_exec
from tests.support.fleet import Fleet
from tests.support.polling import eventually

SEED_ENDPOINTS = [
    {"method": "GET", "path": "/health"},
    {"method": "POST", "path": "/ping"},
    {"method": "POST", "path": "/run"},
    {"method": "GET", "path": "/discovery"},
    {"method": "POST", "path": "/discovery"},
    {"method": "GET", "path": "/status/{reqid}"},
    {"method": "GET", "path": "/openapi.json"},
    {"method": "GET", "path": "/openapi-live.json"},
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        made.add("web-01", "db-01")
        with made.agents["web-01"].conf.open("a") as conf:
            conf.write("[tags]\nenv = production\nrole = web\n")
        assert made.agents["web-01"].running is not None
        made.agents["web-01"].running.stop()
        made.start_agent(made.agents["web-01"])
        made.start_api()
        yield made
    finally:
        made.close()


def listed(document: dict[str, object], key: str) -> list[dict[str, Any]]:
    found = document[key]
    assert isinstance(found, list)
    return found


def test_index(fleet: Fleet) -> None:
    shown = fleet.http("GET", "/").json
    assert shown["name"] == "ctrl-exec-api"
    assert shown["version"] == ctrl_exec.__version__
    assert (shown["spec"], shown["live_spec"]) == ("/openapi.json", "/openapi-live.json")
    assert listed(shown, "endpoints")[:8] == SEED_ENDPOINTS


def test_health(fleet: Fleet) -> None:
    assert fleet.http("GET", "/health").json == {"ok": True, "version": ctrl_exec.__version__}


def test_ping(fleet: Fleet) -> None:
    assert fleet.agents["db-01"].running is not None
    fleet.agents["db-01"].running.stop()
    body = {"hosts": ["web-01", "db-01"], "username": "alice", "token": "mytoken"}
    answer = fleet.http("POST", "/ping", body)
    fleet.start_agent(fleet.agents["db-01"])
    assert answer.status == 200
    assert answer.json["ok"] is True
    good, bad = listed(answer.json, "results")
    assert set(good) == {"host", "status", "rtt", "expiry", "version"}
    assert (good["host"], good["status"], good["version"]) == ("web-01", "ok", ctrl_exec.__version__)
    assert re.fullmatch(r"[0-9]+ms", good["rtt"])
    assert re.fullmatch(r"[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8} [0-9]{4} GMT", good["expiry"])
    assert {"host", "status", "rtt", "error"} <= set(bad)
    assert (bad["host"], bad["status"]) == ("db-01", "error")


def test_run(fleet: Fleet) -> None:
    body = {
        "hosts": ["db-01", "web-01"], "script": "hello", "args": ["--database", "myapp"],
        "username": "alice", "token": "mytoken",
    }  # fmt: skip
    answer = fleet.http("POST", "/run", body)
    assert answer.status == 200
    assert answer.json["ok"] is True
    reqid = answer.json["reqid"]
    assert isinstance(reqid, str)
    assert re.fullmatch(r"[0-9a-f]{16}", reqid)
    results = listed(answer.json, "results")
    assert [each["host"] for each in results] == ["db-01", "web-01"]
    for each in results:
        assert {"host", "exit", "stdout", "stderr", "rtt", "reqid"} <= set(each)
        assert (each["exit"], each["stdout"], each["stderr"]) == (0, "hello --database myapp\n", "")
        assert each["reqid"] == reqid
    assert fleet.api is not None
    assert f"REQID={reqid}" in fleet.api.log()
    assert fleet.agents["db-01"].running is not None
    assert f"REQID={reqid}" in fleet.agents["db-01"].running.log()


@pytest.mark.parametrize(("script", "code"), [("hello", 0), ("fail", 3), ("killed", 126)])
def test_exit_codes(fleet: Fleet, script: str, code: int) -> None:
    answer = fleet.http("POST", "/run", {"hosts": ["db-01"], "script": script})
    assert listed(answer.json, "results")[0]["exit"] == code


def test_a_failure_on_our_side_is_inline(fleet: Fleet) -> None:
    answer = fleet.http("POST", "/run", {"hosts": ["db-01"], "script": "not-on-the-list"})
    assert answer.status == 200
    result = listed(answer.json, "results")[0]
    assert (result["exit"], result["error"]) == (-1, "script not permitted")


def test_lock_conflict(fleet: Fleet) -> None:
    body = {"hosts": ["db-01"], "script": "sleep", "args": ["3"]}
    first = fleet.http("POST", "/run", body | {"async": True})
    assert first.status == 202
    second = fleet.http("POST", "/run", body)
    assert second.status == 409
    assert second.json == {"ok": False, "error": "locked", "code": 4, "conflicts": ["db-01"]}
    eventually(lambda: fleet.http("GET", f"/status/{first.json['reqid']}").json["complete"])


def test_status(fleet: Fleet) -> None:
    made = fleet.http("POST", "/run", {"hosts": ["db-01"], "script": "hello"}).json
    answer = fleet.http("GET", f"/status/{made['reqid']}")
    assert answer.status == 200
    shown = answer.json
    assert {"ok", "reqid", "script", "hosts", "completed", "results"} <= set(shown)
    assert (shown["ok"], shown["reqid"], shown["script"], shown["hosts"]) == (
        True, made["reqid"], "hello", ["db-01"],
    )  # fmt: skip
    assert isinstance(shown["completed"], int)
    assert shown["results"] == made["results"]


def test_status_of_nothing(fleet: Fleet) -> None:
    answer = fleet.http("GET", "/status/a1b2c3d4")
    assert answer.status == 404
    assert answer.json == {"ok": False, "error": "not found", "detail": "no result for reqid a1b2c3d4"}
    assert fleet.http("GET", "/status/no-such-thing").json["error"] == "not found"
    assert fleet.http("GET", "/status/..%2f..%2fetc%2fpasswd").status == 404


@pytest.mark.parametrize(
    ("method", "body"), [("GET", None), ("POST", None), ("POST", {}), ("POST", {"username": "a"})]
)
def test_discovery_of_all(fleet: Fleet, method: str, body: object) -> None:
    shown = fleet.http(method, "/discovery", body).json
    assert shown["ok"] is True
    hosts = shown["hosts"]
    assert isinstance(hosts, dict)
    assert set(hosts) == {"web-01", "db-01"}
    web = hosts["web-01"]
    assert (web["host"], web["status"], web["version"]) == ("web-01", "ok", ctrl_exec.__version__)
    assert web["tags"] == {"env": "production", "role": "web"}
    assert hosts["db-01"]["tags"] == {}
    script = next(each for each in web["scripts"] if each["name"] == "hello")
    assert {"name", "path", "executable"} <= set(script)
    assert script["executable"] is True


def test_discovery_of_some(fleet: Fleet) -> None:
    body = {"hosts": ["db-01"], "username": "alice", "token": "mytoken"}
    hosts = fleet.http("POST", "/discovery", body).json["hosts"]
    assert isinstance(hosts, dict)
    assert set(hosts) == {"db-01"}


def test_the_static_document_is_served_verbatim(fleet: Fleet) -> None:
    answer = fleet.http("GET", "/openapi.json")
    assert answer.body == (Path(__file__).parents[2] / "openapi.json").read_bytes()
    assert answer.headers["Content-Type"] == "application/json"


def test_the_live_document(fleet: Fleet) -> None:
    static = fleet.http("GET", "/openapi.json").json
    assert fleet.agents["db-01"].running is not None
    fleet.agents["db-01"].running.stop()
    live: Any = fleet.http("GET", "/openapi-live.json").json
    fleet.start_agent(fleet.agents["db-01"])
    schemas = live["components"]["schemas"]
    for name in ("PingRequest", "RunRequest", "DiscoveryRequest"):
        assert schemas[name]["properties"]["hosts"]["items"]["enum"] == ["db-01", "web-01"]
    assert schemas["RunRequest"]["properties"]["script"]["enum"] == sorted(
        ["hello", "fail", "stdin", "sleep", "environment", "killed"]
    )
    version: Any = static["info"]
    assert re.fullmatch(re.escape(version["version"]) + r"\+[0-9]{10}", live["info"]["version"])
    assert live["paths"] == static["paths"]
    entry = live["x-ctrl-exec-scripts"]["hello"][0]
    assert entry["hosts"] == ["web-01"]
    assert {"hosts", "schema_version", "schema"} == set(entry)
    assert fleet.http("GET", "/openapi.json").json == static  # no file was written
