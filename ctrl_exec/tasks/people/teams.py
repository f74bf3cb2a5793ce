"""Teams: users who share roles.

Owns their rows and form on the wire; administrators write them.
"""

from __future__ import annotations

from ctrl_exec.common.errors import ConflictError, NotFoundError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.models import Team
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

_MOST_MEMBERS = 10_000


def decode_team(document: dict[str, Any], current: Team | None = None) -> Team:
    """The team that a body describes; what it leaves out stays. Raises: InvalidFieldsError."""
    form = Form(document)
    known = current or Team("", "")
    team = replace(
        known,
        name=form.name("name", *((known.name,) if current else ())),
        members=tuple(dict.fromkeys(form.strings("userIds", known.members, most=_MOST_MEMBERS))),
    )
    form.finish()
    return team


def encode_team(team: Team) -> dict[str, Any]:
    """The team on the wire."""
    return {
        "teamId": team.team_id,
        "creationTs": team.created_ns,
        "updateTs": team.updated_ns,
        "name": team.name,
        "userIds": list(team.members),
    }


def find_team(store: Store, team_id: str) -> Team:
    """Raises: NotFoundError."""
    row = store.row("SELECT * FROM teams WHERE team_id = ?", (team_id,))
    if row is None:
        raise NotFoundError(f"no team {team_id[:40]}")
    return _of_row(store, row)


def list_teams(store: Store, *, limit: int = 50, after_id: str = "", having: str = "") -> tuple[Team, ...]:
    """At most `limit` teams, oldest first, those whose name holds a text."""
    sql = (
        "SELECT * FROM teams WHERE team_id > ? AND instr(lower(name), lower(?)) > 0 ORDER BY team_id LIMIT ?"
    )
    return tuple(_of_row(store, row) for row in store.rows(sql, (after_id, having, limit)))


def save_team(store: Store, identity: Identity, draft: Team) -> Team:
    """Add a team (one without an id), or save a changed one.

    Raises: NotFoundError for a member who does not exist; ConflictError if the name is taken; DeniedError.
    """
    identity.require_administrator()
    now_ns = store.clock_ns()
    is_new = not draft.team_id
    team = replace(draft, updated_ns=now_ns)
    if is_new:
        team = replace(team, team_id=new_ulid(now_ns), created_ns=now_ns)
    with store.writing():
        before = None if is_new else encode_team(find_team(store, team.team_id))
        taken = "SELECT 1 FROM teams WHERE name = ? AND team_id != ?"
        if store.row(taken, (team.name, team.team_id)) is not None:
            raise ConflictError(f"there is a team {team.name!r} already")
        upsert = (
            "INSERT INTO teams (team_id, name, created_ns, updated_ns) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (team_id) DO UPDATE SET name = excluded.name, updated_ns = excluded.updated_ns"
        )
        store.execute(upsert, (team.team_id, team.name, team.created_ns, now_ns))
        store.execute("DELETE FROM members WHERE team_id = ?", (team.team_id,))
        for user_id in team.members:
            if store.row("SELECT 1 FROM users WHERE user_id = ?", (user_id,)) is None:
                raise NotFoundError(f"no user {user_id[:40]}")
            store.insert("members", {"team_id": team.team_id, "user_id": user_id})
        act = ("create" if is_new else "update", "team", team.team_id)
        audit.record(store, identity, act, before=before, after=encode_team(team))
    return team


def remove_team(store: Store, identity: Identity, team_id: str) -> None:
    """Forget a team with its roles. Raises: NotFoundError; DeniedError."""
    identity.require_administrator()
    with store.writing():
        before = find_team(store, team_id)
        store.execute("DELETE FROM teams WHERE team_id = ?", (team_id,))
        audit.record(store, identity, ("delete", "team", team_id), before=encode_team(before))


def _of_row(store: Store, row: sqlite3.Row) -> Team:
    members = store.rows("SELECT user_id FROM members WHERE team_id = ? ORDER BY user_id", (row["team_id"],))
    return Team(members=tuple(each["user_id"] for each in members), **dict(row))
