"""Host patterns: what they stand for, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.errors import InvalidInputError, UnknownAgentError
from ctrl_exec.services.registry import AgentRecord
from ctrl_exec.services.targets import resolve_targets


class Agents:
    """A registry in memory that counts how it is asked."""

    def __init__(self, *records: AgentRecord) -> None:
        self._records = {record.hostname: record for record in records}
        self.full_reads = 0

    def find(self, name: str) -> AgentRecord | None:
        return self._records.get(name)

    def records(self) -> tuple[AgentRecord, ...]:
        self.full_reads += 1
        return tuple(self._records[name] for name in sorted(self._records))


WEBS = tuple(AgentRecord(f"web{n:02d}", tags=(("role", "web"), ("env", "a:b"))) for n in range(1, 21))
AGENTS = Agents(
    *WEBS, AgentRecord("db-01", port=7500, tags=(("role", "db"),)), AgentRecord("n8"), AgentRecord("n10")
)


def names(*patterns: str, limit: int = 100) -> list[str]:
    targets = resolve_targets(patterns, AGENTS, limit)
    assert targets.unknown == ()
    return [target.name for target in targets.require()]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["web02", "web01"], ["web02", "web01"]),
        (["WEB02"], ["web02"]),
        (["web01", "web01", "Web01"], ["web01"]),
        (["web[01-03]"], ["web01", "web02", "web03"]),
        (["web[01,05-06]"], ["web01", "web05", "web06"]),
        (["n[8-8,10]"], ["n8", "n10"]),
        (["@role=db"], ["db-01"]),
        (["@role=db", "web01"], ["db-01", "web01"]),
        (["@all", "!@role=web"], ["db-01", "n10", "n8"]),
        (["!web02", "web[01-03]"], ["web01", "web03"]),
        (["web[01-04]", "!web[02-03]"], ["web01", "web04"]),
        (["@env=a:b", "!web[02-20]"], ["web01"]),
    ],
)
def test_patterns_stand_for_registered_hosts_in_the_order_asked(patterns, expected) -> None:
    """Each host comes once, where it was first named."""
    assert names(*patterns) == expected


@pytest.mark.parametrize(
    ("pattern", "expanded"), [("web01", False), ("web01:1", False), ("web[01-01]", True), ("@all", True)]
)
def test_expansion_is_reported(pattern: str, expanded: bool) -> None:
    """Only patterns make the answer say what they stood for."""
    assert resolve_targets([pattern], AGENTS, 100).expanded is expanded
    assert resolve_targets(["web01", "!web02", "web02"], AGENTS, 100).expanded


def test_ports() -> None:
    """An asked port wins over the default, the default over the registry's, one name has one port."""
    asked = resolve_targets(["web01:7600", "web02", "db-01", "web[03-04]:7700", "web01"], AGENTS, 100)
    assert [target.port for target in asked.hosts] == [7600, 7443, 7500, 7700, 7700]
    moved = resolve_targets(["web01:7600", "db-01"], AGENTS, 100, default_port=9)
    assert [target.port for target in moved.hosts] == [7600, 9]
    with pytest.raises(InvalidInputError, match="two ports"):
        resolve_targets(["web01:1", "web01:2"], AGENTS, 100)


def test_all_unknown_names_are_collected() -> None:
    """Nothing is guessed, the hook sees them as they came, and all are listed."""
    targets = resolve_targets(["web01", "nope", "web[19-22]", "@role=none", "nope"], AGENTS, 100)
    assert targets.unknown == ("nope", "web21", "web22", "@role=none")
    assert targets.names == ("web01", "web19", "web20", "nope", "web21", "web22", "@role=none")
    with pytest.raises(UnknownAgentError) as caught:
        targets.require()
    assert caught.value.names == targets.unknown


def test_an_exclusion_that_matches_nothing_is_unknown() -> None:
    """A mistyped `!name` must not run on the host it was to spare."""
    for pattern in ("!wbe01", "!web[20-21]", "!@role=none"):
        with pytest.raises(UnknownAgentError):
            resolve_targets(["@all", pattern], AGENTS, 100).require()


def test_patterns_that_leave_nothing_are_unknown() -> None:
    """Nothing left is 404, not an empty run."""
    with pytest.raises(UnknownAgentError):
        resolve_targets(["web01", "!web01"], AGENTS, 100).require()
    with pytest.raises(UnknownAgentError):
        resolve_targets(["@all"], Agents(), 100).require()


@pytest.mark.parametrize(
    "pattern",
    [
        "", " ", "-web", ".web", "web 01", "web/01", "../web", "web\n", "web01:", "web01:0", "web01:65536",
        "web01:1:2", "web01:x", "web01:٣", "wéb", "web[", "web]", "web[]", "web[1-]", "web[-1]", "web[5-1]",
        "web[1,]", "web[1-2][3-4]", "web[a-b]", "web[1-9999999999]", "@", "@all=", "@ALL", "@role", "@=x",
        "@a b=c", "!", "!!web01", "!web01:7443", "@all:7443x\0", "x" * 400, "[1-2]" + "x" * 253, 7, None, ["web01"],
    ],
)  # fmt: skip
def test_bad_syntax_is_named(pattern) -> None:
    """What is no pattern is refused before anyone is asked."""
    try:
        targets = resolve_targets(["web01", pattern], AGENTS, 100)
    except InvalidInputError as error:
        assert error.field == "hosts"
    else:  # a tag nobody can have is just unknown
        assert pattern == "@all="
        assert targets.unknown == ("@all=",)


@pytest.mark.parametrize("patterns", [[], "web01", ["!web01"], ["!@all"]])
def test_something_must_be_meant(patterns) -> None:
    """No host at all, or only hosts to leave out, is bad input."""
    with pytest.raises(InvalidInputError):
        resolve_targets(patterns, AGENTS, 100)


def test_the_limit_is_checked_after_the_hook_was_asked() -> None:
    """Too many hosts are refused by `require`, and the work to find out is bounded."""
    with pytest.raises(InvalidInputError, match="more than 5 hosts"):
        resolve_targets(["web[01-20]"], AGENTS, 5).require()
    assert len(resolve_targets(["web[01-05]"], AGENTS, 5).require()) == 5
    huge = resolve_targets(["x[0-999999999]"], AGENTS, 5)
    assert len(huge.unknown) == 6


def test_plain_names_do_not_read_the_whole_registry() -> None:
    """One host of ten thousand costs one record."""
    agents = Agents(*WEBS)
    resolve_targets(["web01", "web[02-03]"], agents, 100)
    assert agents.full_reads == 0
    resolve_targets(["@all", "@role=web", "!@role=db"], agents, 100)
    assert agents.full_reads == 1


PATTERNS = st.one_of(
    st.sampled_from(["web01", "web02:7443", "@all", "@role=web", "!web03", "!@role=db", "web[01-20]", "web[18-22]", "no"]),
    st.text(alphabet="web0123456789[]-,:!@=.", max_size=12),
    st.text(max_size=6),
)  # fmt: skip


@given(st.lists(PATTERNS, max_size=6))
def test_any_patterns_give_distinct_known_hosts_or_a_named_refusal(patterns: list[str]) -> None:
    """Hosts are distinct and registered, unknown ones are not, and nothing else is raised."""
    try:
        targets = resolve_targets(patterns, AGENTS, 8)
    except InvalidInputError:
        return
    found = [target.name for target in targets.hosts]
    assert len(found) == len(set(found))
    assert all(AGENTS.find(target.name) is target.record for target in targets.hosts)
    assert set(targets.names) == set(found) | set(targets.unknown)
    assert not set(found) & set(targets.unknown)
    assert found or targets.unknown
