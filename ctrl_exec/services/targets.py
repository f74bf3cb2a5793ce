"""What a caller's host patterns stand for: registered agents, each once, with the port asked for.

Owns the pattern language: `name`, `name:port`, `web[01-20]`, `@tag=value`, `@all`, and `!` before
any of them to leave out. Names resolve through the registry only; what does not is collected, never
guessed, and an exclusion that matches nothing counts as unknown too: a mistyped `!name` must not run
on the very host it was to spare. Knows nothing of who asks or what for.
"""

from __future__ import annotations

from ctrl_exec.common.errors import InvalidInputError, InvalidNameError, UnknownAgentError
from ctrl_exec.common.names import check_agent_name
from ctrl_exec.common.patterns import Pattern
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    from ctrl_exec.services.registry import AgentRecord
else:
    Protocol = object

_PATTERN_LIMIT = 320
# nobody has been asked yet who the caller is: what its patterns make us look at is bounded, with
# room for those that name many and leave most of them out again
_LOOKS_A_HOST = 4
_SPARE_LOOKS = 1000
_RANGE = Pattern(r"([^\[\]]*)\[([0-9,-]{1,64})\]([^\[\]]*)")
_SPAN = Pattern(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_TAG = Pattern(r"@([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.{0,128})")
_PORT = Pattern(r"[0-9]{1,5}")


class Agents(Protocol):
    """The part of the registry that names are looked up in."""

    def find(self, name: str) -> AgentRecord | None:
        """The agent's record, if it is registered."""

    def records(self) -> tuple[AgentRecord, ...]:
        """All records, sorted by name."""


@value
class Target:
    """One agent to be contacted; `port` is what the caller asked for, else the registry's."""

    name: str
    port: int
    record: AgentRecord


@value
class Targets:
    """What the patterns stand for.

    `hosts` in the order asked, `unknown` as written, `expanded` whether a pattern was used,
    `names` all of it as the auth hook sees it, `limit` how many may be meant at once, `is_cut`
    whether the patterns were so many that not all were looked at.
    """

    hosts: tuple[Target, ...]
    unknown: tuple[str, ...]
    expanded: bool
    names: tuple[str, ...]
    limit: int
    is_cut: bool = False

    def require(self) -> tuple[Target, ...]:
        """The hosts, when all were known and they are not too many.

        Raises: UnknownAgentError with all unknown names; InvalidInputError.
        """
        if self.unknown:
            raise UnknownAgentError(self.unknown)
        if self.is_cut or len(self.hosts) > self.limit:
            raise InvalidInputError(f"more than {self.limit} hosts", field="hosts")
        return self.hosts


def resolve_targets(
    patterns: Sequence[str], agents: Agents, limit: int, *, default_port: int | None = None
) -> Targets:
    """What the patterns stand for in the registry; `default_port` replaces the recorded ports.

    A pattern that alone means more than `limit` hosts is cut one above it, and all of them at some
    times the limit, so that the work is bounded and `Targets.require` still refuses.

    Raises: InvalidInputError for bad syntax, or when one name, registered or not, is given two ports.
    """
    if isinstance(patterns, str) or not patterns:
        raise InvalidInputError("expected at least one host", field="hosts")
    resolution = _Resolution(agents, limit)
    for pattern in patterns:
        resolution.take(_parse(pattern))
    return resolution.finish(default_port)


@value
class _Pattern:
    """One parsed pattern; `names` is None where the registry decides (`@…`)."""

    text: str
    excludes: bool
    tag: tuple[str, str] | None
    names: _Names | None
    port: int | None

    @property
    def is_literal(self) -> bool:
        return self.names is not None and not self.names.spans and not self.excludes


@value
class _Names:
    """`prefix[spans]suffix`, or a plain name in `prefix` without spans."""

    prefix: str
    spans: tuple[tuple[int, int, int], ...] = ()
    suffix: str = ""

    def __iter__(self) -> Iterator[str]:
        if not self.spans:
            yield self.prefix
        for first, last, width in self.spans:
            for number in range(first, last + 1):
                yield f"{self.prefix}{number:0{width}d}{self.suffix}"


def _parse(pattern: object) -> _Pattern:
    if not isinstance(pattern, str) or not pattern or len(pattern) > _PATTERN_LIMIT:
        raise InvalidNameError(
            f"{ascii(pattern)[:80]} is not a host: expected a name, name:port or a pattern", field="hosts"
        )
    excludes = pattern.startswith("!")
    body = pattern[1:] if excludes else pattern
    if body.startswith("@"):
        return _Pattern(pattern, excludes, _parse_tag(body), None, None)
    name, port = _split_port(body)
    if excludes and port is not None:
        raise InvalidNameError(f"{pattern!a}: what is left out takes no port", field="hosts")
    return _Pattern(pattern, excludes, None, _parse_names(name), port)


def _parse_tag(body: str) -> tuple[str, str] | None:
    if body == "@all":
        return None
    found = _TAG.fullmatch(body)
    if found is None:
        raise InvalidNameError(
            f"{ascii(body)[:80]} is not a host pattern: expected @all or @tag=value", field="hosts"
        )
    return found[1], found[2]


def _split_port(body: str) -> tuple[str, int | None]:
    name, colon, text = body.partition(":")
    if not colon:
        return name, None
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise InvalidNameError(
            f"{ascii(body)[:80]}: {ascii(text)[:20]} is not a port: expected 1 to 65535", field="hosts"
        )
    return name, int(text)


def _parse_names(name: str) -> _Names:
    found = _RANGE.fullmatch(name) if "[" in name else None  # few are ranges: see `Pattern`
    if found is None:
        return _Names(check_agent_name(name, "hosts"))
    prefix, inner, suffix = found.groups()
    spans = tuple(_parse_span(name, part) for part in inner.split(","))
    # every name of the range has the same shape: checking the widest one checks them all
    check_agent_name(f"{prefix}{'0' * max(width for _, _, width in spans)}{suffix}", "hosts")
    check_agent_name(f"{prefix}{max(last for _, last, _ in spans)}{suffix}", "hosts")
    return _Names(prefix.lower(), spans, suffix.lower())


def _parse_span(name: str, part: str) -> tuple[int, int, int]:
    """(first, last, digits to pad to); `[8-12]` counts 8, 9, 10 and `[08-12]` 08, 09, 10."""
    found = _SPAN.fullmatch(part)
    first_text = found[1] if found else ""
    last_text = (found[2] or first_text) if found else ""
    if not found or int(first_text) > int(last_text):
        raise InvalidNameError(
            f"{ascii(name)[:80]}: [{part}] is not a range: expected [01-20] or [1,3,5-7]", field="hosts"
        )
    width = len(first_text) if first_text.startswith("0") else 1
    return int(first_text), int(last_text), width


class _Resolution:
    """The state of one call: what was found so far, in order."""

    def __init__(self, agents: Agents, limit: int) -> None:
        self._agents = agents
        self._limit = limit
        self._looks_left = limit * _LOOKS_A_HOST + _SPARE_LOOKS
        self._by_tag: dict[tuple[str, str] | None, list[str]] | None = None
        self._wanted: dict[str, None] = {}
        self._ports: dict[str, int] = {}
        self._unknown: dict[str, None] = {}
        self._excluded: set[str] = set()
        self._records: dict[str, AgentRecord] = {}
        self._positive: list[str] = []
        self._expanded = False

    def take(self, pattern: _Pattern) -> None:
        self._expanded |= not pattern.is_literal
        if not pattern.excludes:
            self._positive.append(pattern.text)
        for name in self._matches(pattern):
            if pattern.excludes:
                self._excluded.add(name)
            else:
                self._wanted[name] = None

    def _matches(self, pattern: _Pattern) -> list[str]:
        """The registered names meant; the others, or a tag nobody has, go to the unknown ones."""
        if pattern.names is None:
            tagged = self._tagged(pattern.tag)
            if not self._may_look(len(tagged) + 1):
                return []
            if not tagged:
                self._unknown[pattern.text] = None
            return tagged
        found = []
        for count, name in enumerate(pattern.names):
            if count > self._limit or not self._may_look():
                break
            self._note_port(name, pattern.port)
            if self._is_registered(name):
                found.append(name)
            else:
                self._unknown[name] = None
        return found

    def _may_look(self, count: int = 1) -> bool:
        """Take from what may be looked at; False when it is used up."""
        self._looks_left -= count
        return self._looks_left >= 0

    def _tagged(self, tag: tuple[str, str] | None) -> list[str]:
        if self._by_tag is None:
            records = self._agents.records()
            self._records |= {record.hostname: record for record in records}
            self._by_tag = {None: [record.hostname for record in records]}
            for record in records:
                for each in record.tags:
                    self._by_tag.setdefault(each, []).append(record.hostname)
        return self._by_tag.get(tag, [])

    def _is_registered(self, name: str) -> bool:
        if name in self._records:
            return True
        record = self._agents.find(name)
        if record is not None:
            self._records[name] = record
        return record is not None

    def _note_port(self, name: str, port: int | None) -> None:
        known = self._ports.setdefault(name, port) if port is not None else None
        if known != port:
            raise InvalidInputError(f"{name} is named with two ports, {known} and {port}", field="hosts")

    def finish(self, default_port: int | None) -> Targets:
        if not self._positive:
            raise InvalidInputError(
                "only hosts to leave out were named: add @all or the hosts meant", field="hosts"
            )
        hosts = tuple(
            Target(
                name, self._ports.get(name) or default_port or self._records[name].port, self._records[name]
            )
            for name in self._wanted
            if name not in self._excluded
        )
        if not hosts and not self._unknown:
            self._unknown = dict.fromkeys(self._positive)
        names = (*(host.name for host in hosts), *self._unknown)
        is_cut = self._looks_left < 0
        return Targets(hosts, tuple(self._unknown), self._expanded, names, self._limit, is_cut)
