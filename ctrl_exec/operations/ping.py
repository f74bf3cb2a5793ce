"""Ping agents: who answers, how fast, in which version, until when its certificate is valid.

Owns the order resolve → authorise → ask → note. Must not know how the answer is shown.
"""

from __future__ import annotations

from ctrl_exec.common.names import new_reqid
from ctrl_exec.operations.contact import NO_FEATURES, Contacts
from ctrl_exec.services.agent_answers import PingResult
from ctrl_exec.services.targets import resolve_targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.services.transport import Interrupt

__all__ = ["PingResult", "ping"]

INTERRUPTED = "interrupted before it answered"


def ping(
    dispatcher: Dispatcher,
    caller: Caller,
    hosts: Sequence[str],
    *,
    agent_port: int | None = None,
    interrupt: Interrupt | None = None,
    on_result: Callable[[PingResult], None] | None = None,
) -> tuple[PingResult, ...]:
    """Ping the hosts meant; one result for each, in the order asked.

    Raises: InvalidInputError; DeniedError; UnknownAgentError; CertificateError if our own identity
    cannot be used; StorageError if it cannot be told which keys are revoked.
    """
    targets = resolve_targets(
        hosts, dispatcher.registry, dispatcher.config.max_hosts, default_port=agent_port
    )
    reqid = new_reqid()
    dispatcher.authority.check(caller, "ping", hosts=targets.names, reqid=reqid)
    asked = targets.require()
    found: dict[str, PingResult] = {}
    contacts = Contacts(dispatcher)
    for result in dispatcher.agents.ping(asked, reqid, interrupt=interrupt):
        found[result.host] = result
        if result.is_ok:
            contacts.note(
                result.host,
                version=result.version,
                expiry=result.expiry,
                features=list(result.features) or [NO_FEATURES],
            )
        _log(dispatcher, reqid, result)
        if on_result is not None:
            on_result(result)
    return tuple(
        found.get(target.name) or PingResult(target.name, "cancelled", error=INTERRUPTED) for target in asked
    )


def _log(dispatcher: Dispatcher, reqid: str, result: PingResult) -> None:
    write = dispatcher.log.info if result.is_ok else dispatcher.log.warning
    write(
        "ping",
        host=result.host,
        reqid=reqid,
        rtt=f"{result.rtt_ms}ms",
        state=result.state,
        error=result.error or None,
    )
