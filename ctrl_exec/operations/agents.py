"""Changing what is known of a paired agent: edit, unpair, revoke.

Owns the order of the steps and their log lines. Authorises nobody: these are signing commands,
guarded by who may write the registry.
"""

from __future__ import annotations

from ctrl_exec.common.errors import InvalidInputError, UnknownAgentError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrl_exec.common.log import Log
    from ctrl_exec.services.registry import AgentRecord, Registry, Revocation


@value
class AgentChange:
    """What to change of a record; unset fields stay. `tags` are set, `removed_tags` taken away."""

    ip: str | None = None
    port: int | None = None
    lookup_by: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    removed_tags: tuple[str, ...] = ()


def edit_agent(registry: Registry, name: str, change: AgentChange) -> AgentRecord:
    """Change the record and give it.

    Raises: UnknownAgentError; InvalidInputError for a bad field or a change of nothing; StorageError.
    """
    fields: dict[str, object] = {
        key: given
        for key, given in (("ip", change.ip), ("port", change.port), ("lookup_by", change.lookup_by))
        if given is not None
    }
    if change.tags or change.removed_tags:
        kept = dict(registry.get(name).tags) | dict(change.tags)
        fields["tags"] = tuple((key, kept[key]) for key in kept if key not in change.removed_tags)
    if not fields:
        raise InvalidInputError("nothing to change was given")
    return registry.amend(name, **fields)


def unpair(registry: Registry, log: Log, names: Sequence[str], *, revoking: bool, reason: str = "") -> None:
    """Forget the agents, their keys revoked first where asked; all of them or, for a wrong name, none.

    Raises: UnknownAgentError naming all unknown ones; InvalidInputError for a key nobody knows.
    """
    records = _all_of(registry, names)
    if revoking:
        _revoke(registry, log, records, reason)
    for record in records:
        registry.remove(record.hostname)
        log.info("unpair", agent=record.hostname, serial=record.serial)


def revoke(registry: Registry, log: Log, names: Sequence[str], reason: str = "") -> tuple[Revocation, ...]:
    """Revoke the agents' keys; their records stay, so that one sees why they are refused.

    Raises: UnknownAgentError naming all unknown ones; InvalidInputError for a key nobody knows.
    """
    return _revoke(registry, log, _all_of(registry, names), reason)


def _revoke(
    registry: Registry, log: Log, records: Sequence[AgentRecord], reason: str
) -> tuple[Revocation, ...]:
    without_key = [record.hostname for record in records if not record.fingerprint]
    if without_key:
        raise InvalidInputError(
            f"no key is recorded for {', '.join(without_key)}: ping once to learn it, "
            "or unpair without --revoke"
        )
    done = []
    for record in records:
        done.append(registry.revoke(record, reason))
        log.info("revoke", agent=record.hostname, serial=record.serial, reason=reason or None)
    return tuple(done)


def _all_of(registry: Registry, names: Sequence[str]) -> list[AgentRecord]:
    found = {name: registry.find(name) for name in names}
    unknown = [name for name, record in found.items() if record is None]
    if unknown:
        raise UnknownAgentError(unknown)
    return [record for record in found.values() if record is not None]
