"""The live OpenAPI document: the static one, with the fleet's host and script names put in.

Owns where they go. Made anew on each request, in memory; nothing is cached and no file written.
"""

from __future__ import annotations

import json

import ctrl_exec
from ctrl_exec.common.clock import epoch_now
from ctrl_exec.common.names import SCRIPT
from ctrl_exec.services.targets import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.agent_client import CapabilitiesReport

HOST_SCHEMAS = ("PingRequest", "RunRequest", "DiscoveryRequest")


def live_document(base: bytes, dispatcher: Dispatcher) -> dict[str, Any]:
    """The document for the fleet as it answers now; agents that do not are left out silently."""
    document: dict[str, Any] = json.loads(base)
    names = dispatcher.registry.names()
    reports = tuple(_ask_all(dispatcher))
    schemas = document["components"]["schemas"]
    if names:
        for schema in HOST_SCHEMAS:
            schemas[schema]["properties"]["hosts"]["items"] = {"type": "string", "enum": list(names)}
    scripts = script_index(reports)
    if scripts:
        schemas["RunRequest"]["properties"]["script"]["enum"] = sorted(scripts)
    document["x-ctrl-exec-scripts"] = {name: scripts[name] for name in sorted(scripts)}
    document["info"]["version"] = stamped(document["info"].get("version", ctrl_exec.__version__), epoch_now())
    return document


def _ask_all(dispatcher: Dispatcher) -> Iterable[CapabilitiesReport]:
    # names are the caller's to see once the informational action is allowed: no second question
    targets = tuple(Target(each.hostname, each.port, each) for each in dispatcher.registry.records())
    found = dispatcher.agents.capabilities(targets, timeout_s=dispatcher.config.discovery_timeout)
    return sorted((each for each in found if each.is_ok), key=lambda each: each.host)


def script_index(reports: Iterable[CapabilitiesReport]) -> dict[str, list[dict[str, Any]]]:
    """`{script: [{hosts, schema_version, schema}]}`, one entry for each version of its sidecar."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for report in reports:
        for script in report.scripts:
            name = str(script.get("name", ""))
            if not SCRIPT.fullmatch(name):
                continue
            version = str(script.get("schema_version", ""))
            entry: dict[str, Any] = {"hosts": [], "schema_version": version, "schema": script.get("schema")}
            found.setdefault(name, {}).setdefault(version, entry)["hosts"].append(report.host)
    return {name: [versions[each] for each in sorted(versions)] for name, versions in found.items()}


def stamped(version: str, epoch: int) -> str:
    """`0.2.8+1737123456`; an earlier stamp is taken off first."""
    return f"{version.partition('+')[0]}+{epoch}"
