"""The live document: where names go, which versions of a sidecar, one stamp."""

from __future__ import annotations

from typing import Any

from ctrl_exec.api.live import script_index, stamped
from ctrl_exec.services.agent_client import CapabilitiesReport


def report(host: str, *scripts: dict[str, Any]) -> CapabilitiesReport:
    return CapabilitiesReport(host, "ok", scripts=scripts)


def test_stamps_do_not_pile_up() -> None:
    assert stamped("0.2.8", 1737123456) == "0.2.8+1737123456"
    assert stamped(stamped("0.2.8", 1), 2) == "0.2.8+2"


def test_hosts_are_gathered_by_script_and_version_of_its_schema() -> None:
    old = {"name": "deploy", "schema_version": "1", "schema": {"version": "1"}}
    new = {"name": "deploy", "schema_version": "2", "schema": {"version": "2"}}
    plain = {"name": "uptime"}
    found = script_index([report("a", old, plain), report("b", new), report("c", old)])
    assert found == {
        "deploy": [
            {"hosts": ["a", "c"], "schema_version": "1", "schema": {"version": "1"}},
            {"hosts": ["b"], "schema_version": "2", "schema": {"version": "2"}},
        ],
        "uptime": [{"hosts": ["a"], "schema_version": "", "schema": None}],
    }


def test_names_that_are_none_are_left_out() -> None:
    assert script_index([report("a", {"name": "../x"}, {"name": 7.5}, {})]) == {}
