"""`POST /ping`, `GET|POST /discovery`, `GET /agents`: the agents, asked or looked up."""

from __future__ import annotations

from ctrl_exec.api.inquiry import has_pattern, hosts_of, required_hosts_of
from ctrl_exec.common.routing import json_response
from ctrl_exec.common.value import as_dict
from ctrl_exec.operations.discovery import discover
from ctrl_exec.operations.ping import ping
from ctrl_exec.services.transport import Interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.api.inquiry import Inquiry
    from ctrl_exec.common.routing import Response

HOST_KEYS = ("hosts",)


def ping_hosts(inquiry: Inquiry) -> Response:
    """`POST /ping`."""
    hosts = required_hosts_of(inquiry.document)
    with inquiry.child.watch(inquiry.request.connection) as left:
        interrupt = Interrupt((left.fileno(),), lambda: bool(left.poll(0)))
        results = ping(inquiry.dispatcher, inquiry.caller, hosts, interrupt=interrupt)
    shown: dict[str, Any] = {"ok": True}
    if has_pattern(hosts):
        shown["hosts"] = [result.host for result in results]
    return json_response(200, shown | {"results": [result.as_json() for result in results]})


def discover_hosts(inquiry: Inquiry) -> Response:
    """`GET /discovery` for all, `POST` for those named, or all."""
    hosts = hosts_of(inquiry.document)
    with inquiry.child.watch(inquiry.request.connection) as left:
        interrupt = Interrupt((left.fileno(),), lambda: bool(left.poll(0)))
        found = discover(inquiry.dispatcher, inquiry.caller, hosts, interrupt=interrupt)
    return json_response(200, {"ok": True, "hosts": found})


def list_agents(inquiry: Inquiry) -> Response:
    """`GET /agents`: the registry."""
    inquiry.authorise("pairing")
    registry = inquiry.dispatcher.registry
    revoked = {each.fingerprint for each in registry.revocations()}
    agents = []
    for record in registry.records():
        contact = registry.contact(record.hostname)
        live = {"last_contact": contact.get("at", ""), "version": contact.get("version", "")}
        fixed = as_dict(record) | {"tags": dict(record.tags), "revoked": record.fingerprint in revoked}
        agents.append(fixed | live)
    return json_response(200, {"ok": True, "agents": agents})
