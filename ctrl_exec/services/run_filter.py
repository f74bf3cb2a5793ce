"""Which runs are wanted, and where they stand in the index.

Owns the question put to the index's database: conditions, order, and the index of it that covers
them. Opens nothing.
"""

from __future__ import annotations

from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from ctrl_exec.services.record_heads import RunHead

    Key = tuple[int, str]
    """`created` and id of a run: its place in the list."""


@value
class RunFilter:
    """Which runs are wanted: those that have all of what is given."""

    state: str = ""
    script: str = ""
    host: str = ""
    user: str = ""
    since: int | None = None

    def fits(self, head: RunHead) -> bool:
        """Whether the record is one of them."""
        return (
            self.state in ("", head.state)
            and self.script in ("", head.script)
            and self.user in ("", head.submitter)
            and (not self.host or self.host in head.hosts)
            and (self.since is None or head.created >= self.since)
        )


def find_keys(
    database: sqlite3.Connection, wanted: RunFilter, after: Key | None, count: int
) -> Iterator[Key]:
    """The places of all runs that are wanted, newest first, read `count` at a time."""
    conditions, given = _conditions(wanted)
    source = _source(wanted)
    while True:
        where, values = list(conditions), list(given)
        if after is not None:
            where.append("(created, reqid) < (?, ?)")
            values += after
        # no value of a request is in the text
        query = (
            f"SELECT created, reqid FROM {source} WHERE {' AND '.join(where) or '1'}"  # noqa: S608
            " ORDER BY created DESC, reqid DESC LIMIT ?"
        )
        found = database.execute(query, (*values, count)).fetchall()
        yield from found
        if len(found) < count:
            return
        after = found[-1]


def _conditions(wanted: RunFilter) -> tuple[list[str], list[object]]:
    named = (("state", wanted.state), ("script", wanted.script), ("user", wanted.user), ("host", wanted.host))
    conditions = [f"{column} = ?" for column, given in named if given]
    values: list[object] = [given for _, given in named if given]
    if wanted.since is not None:
        conditions.append("created >= ?")
        values.append(wanted.since)
    return conditions, values


def _source(wanted: RunFilter) -> str:
    """Table and index: each covers all conditions, so that a rare combination costs no look at rows."""
    if wanted.host:
        return "hosts"
    if wanted.state and wanted.state != "completed":
        return "runs INDEXED BY by_state"
    if wanted.script:
        return "runs INDEXED BY by_script"
    if wanted.user:
        return "runs INDEXED BY by_user"
    return "runs INDEXED BY by_state" if wanted.state else "runs INDEXED BY by_time"
