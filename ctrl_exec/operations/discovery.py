"""Ask agents what they may run, and what they say of themselves.

Owns the order resolve → authorise (privilege of `ping`) → ask → note. The tags an agent reports are
shown and compared with those of the registry, never used to choose it.
"""

from __future__ import annotations

from ctrl_exec.common.names import new_reqid
from ctrl_exec.operations.contact import NO_FEATURES, Contacts
from ctrl_exec.services.agent_answers import CapabilitiesReport
from ctrl_exec.services.targets import resolve_targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.targets import Target
    from ctrl_exec.services.transport import Interrupt

__all__ = ["CapabilitiesReport", "discover"]


def discover(
    dispatcher: Dispatcher,
    caller: Caller,
    hosts: Sequence[str] | None = None,
    *,
    agent_port: int | None = None,
    interrupt: Interrupt | None = None,
) -> dict[str, dict[str, Any]]:
    """`{name: {host, status, version, tags, scripts}}` of the hosts meant, or of all (None).

    An agent that did not answer within `discovery_timeout` has status `error`. The names are in the
    order asked.

    Raises: InvalidInputError; DeniedError; UnknownAgentError; CertificateError if our own identity
    cannot be used; StorageError if it cannot be told which keys are revoked.
    """
    reqid = new_reqid()
    asked = _resolve(dispatcher, caller, hosts, agent_port, reqid)
    timeout_s = dispatcher.config.discovery_timeout
    found = {
        target.name: CapabilitiesReport(target.name, "cancelled", error="interrupted before it answered")
        for target in asked
    }
    recorded = {target.name: target.record.tags for target in asked}
    contacts = Contacts(dispatcher)
    for report in dispatcher.agents.capabilities(asked, timeout_s=timeout_s, interrupt=interrupt):
        found[report.host] = report
        if report.is_ok:
            # the names alone: shell completion offers them without asking anyone
            scripts = [str(each.get("name")) for each in report.scripts[:1000]]
            contacts.note(
                report.host,
                version=report.version,
                tags=dict(report.tags),
                scripts=scripts,
                features=list(report.features) or [NO_FEATURES],
            )
        _log(dispatcher, reqid, report, recorded[report.host])
    return {name: report.as_json() for name, report in found.items()}


def _resolve(
    dispatcher: Dispatcher,
    caller: Caller,
    hosts: Sequence[str] | None,
    agent_port: int | None,
    reqid: str,
) -> tuple[Target, ...]:
    registry = dispatcher.registry
    if hosts is None and not registry.names():
        dispatcher.authority.check(caller, "ping", reqid=reqid)
        return ()
    # "all" is as many as there are: nobody asked for too many
    patterns = ("@all",) if hosts is None else hosts
    limit = dispatcher.config.max_hosts if hosts is not None else len(registry.names())
    targets = resolve_targets(patterns, registry, limit, default_port=agent_port)
    dispatcher.authority.check(caller, "ping", hosts=targets.names, reqid=reqid)
    return targets.require()


def _log(
    dispatcher: Dispatcher, reqid: str, report: CapabilitiesReport, recorded: Iterable[tuple[str, str]]
) -> None:
    write = dispatcher.log.info if report.is_ok else dispatcher.log.warning
    facts = {"host": report.host, "reqid": reqid, "state": report.state, "error": report.error or None}
    if report.is_ok:
        differing = _difference(dict(recorded), dict(report.tags))
        if differing:
            facts["tags_differ"] = differing
    write("capabilities", **facts)


def _difference(recorded: Mapping[str, str], live: Mapping[str, str]) -> str:
    """`key:recorded->live` of each tag that differs; `-` where one side has none."""
    keys = sorted(key for key in recorded.keys() | live.keys() if recorded.get(key) != live.get(key))
    return " ".join(f"{key}:{recorded.get(key, '-')}->{live.get(key, '-')}" for key in keys)
