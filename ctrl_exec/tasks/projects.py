"""Projects and who has which role in them.

Owns their rows. A project's id is the slug of its first name and never changes.
"""

from __future__ import annotations

import re
import unicodedata

from ctrl_exec.common.errors import ConflictError, NotFoundError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.codec import MOST_RETENTION_DAYS, decode_timeout
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.models import OPEN_STATUSES, ROLES, Project, Role
from ctrl_exec.tasks.ulid import ULID

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

_SLUG_LIMIT = 64
_NO_SLUG = re.compile(r"[^a-z0-9]+", re.ASCII)
_MOST_ROLES = 1000


def slug_of(name: str) -> str:
    """What a project's first name gives as its id: `My awesome project` → `my-awesome-project`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    return _NO_SLUG.sub("-", plain).strip("-")[:_SLUG_LIMIT].strip("-") or "project"


def decode_project(document: dict[str, Any], current: Project | None = None) -> Project:
    """The project that a body describes, whole. Raises: InvalidFieldsError."""
    form = Form(document)
    known = current or Project("", "")
    for key, own in (("projectId", known.project_id), ("creationTs", known.created_ns),
                     ("updateTs", known.updated_ns)) if current else ():  # fmt: skip
        if form.raw(key) not in (None, own):
            form.refuse(key, f"expected {own}: it never changes by a request")
    timeout, unit = decode_timeout(form)
    project = replace(
        known,
        name=form.name(),
        description=form.text("description", ""),
        timeout=timeout,
        timeout_unit=unit,
        retention_days=form.whole("executionRetentionPeriod", 0, MOST_RETENTION_DAYS, None),
    )
    form.finish()
    return project


def encode_project(project: Project) -> dict[str, Any]:
    """The project on the wire."""
    return {
        "projectId": project.project_id,
        "creationTs": project.created_ns,
        "updateTs": project.updated_ns,
        "name": project.name,
        "description": project.description,
        "timeout": project.timeout,
        "timeoutDurationUnit": project.timeout_unit,
        "executionRetentionPeriod": project.retention_days,
    }


def add_project(store: Store, identity: Identity, draft: Project) -> Project:
    """A new project like the draft; its id is the draft's, or made from its name, and free in any case.

    Raises: DeniedError.
    """
    identity.require_administrator()
    now_ns = store.clock_ns()
    with store.writing():
        project_id = _free_slug(store, slug_of(draft.project_id or draft.name))
        project = replace(draft, project_id=project_id, created_ns=now_ns, updated_ns=now_ns)
        store.insert("projects", _as_row(project))
        act = ("create", "project", project_id)
        audit.record(store, identity, act, project_id=project_id, after=encode_project(project))
    return project


def _free_slug(store: Store, slug: str) -> str:
    number = 1
    found = slug
    while store.row("SELECT 1 FROM projects WHERE project_id = ?", (found,)) is not None:
        number += 1
        ending = f"-{number}"
        found = slug[: _SLUG_LIMIT - len(ending)] + ending
    return found


def find_project(store: Store, identity: Identity, project_id: str) -> Project:
    """Raises: NotFoundError, also where one has no role."""
    identity.require_role(project_id)
    return load_project(store, project_id)


def load_project(store: Store, project_id: str) -> Project:
    """The project, whoever asks. Raises: NotFoundError."""
    row = store.row("SELECT * FROM projects WHERE project_id = ?", (project_id,))
    if row is None:
        raise NotFoundError(f"no project {project_id[:80]}")
    return Project(**dict(row))


def list_projects(
    store: Store, identity: Identity, *, limit: int = 50, after_id: str = "", having: str = ""
) -> tuple[Project, ...]:
    """At most `limit` of the projects one has a role in, by their ids."""
    condition, values = visible_condition(identity)
    sql = f"""
    SELECT * FROM projects WHERE project_id > ? AND instr(lower(name), lower(?)) > 0 AND {condition}
    ORDER BY project_id LIMIT ?
    """
    return tuple(Project(**dict(row)) for row in store.rows(sql, (after_id, having, *values, limit)))


def visible_condition(identity: Identity) -> tuple[str, tuple[str, ...]]:
    """The part of a query that leaves what one may see, and its values."""
    visible = identity.visible
    if visible is None:
        return "1", ()
    return f"project_id IN ({', '.join('?' * len(visible))})", visible


def narrowed(wanted: dict[str, str], columns: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The part of a query for columns that hold what `wanted` says, and for `having`, a part of the name."""
    conditions = [f"{name} = ?" for name in columns if name in wanted]
    values = [wanted[name] for name in columns if name in wanted]
    if wanted.get("having"):
        conditions.append("instr(lower(name), lower(?)) > 0")
        values.append(wanted["having"])
    return " AND ".join(conditions) or "1", tuple(values)


def change_project(store: Store, identity: Identity, project: Project) -> Project:
    """Save a changed project. Raises: NotFoundError; DeniedError."""
    identity.require_role(project.project_id, "MANAGER")
    with store.writing():
        before = find_project(store, identity, project.project_id)
        project = replace(project, updated_ns=store.clock_ns())
        row = _as_row(project)
        sets = ", ".join(f"{name} = ?" for name in row)
        values = (*row.values(), project.project_id)
        store.execute(f"UPDATE projects SET {sets} WHERE project_id = ?", values)
        documents = {"before": encode_project(before), "after": encode_project(project)}
        act = ("update", "project", project.project_id)
        audit.record(store, identity, act, project_id=project.project_id, **documents)
    return project


def remove_project(store: Store, identity: Identity, project_id: str) -> None:
    """Forget a project with all that belongs to it.

    Raises: NotFoundError; DeniedError; ConflictError while an execution is under way.
    """
    before = find_project(store, identity, project_id)
    identity.require_administrator()
    from ctrl_exec.tasks.execution.forgetting import forget_history

    _require_idle(store, project_id)
    forget_history(store, "project", project_id)
    with store.writing():
        _require_idle(store, project_id)
        store.execute("DELETE FROM projects WHERE project_id = ?", (project_id,))
        act = ("delete", "project", project_id)
        audit.record(store, identity, act, project_id=project_id, before=encode_project(before))
        store.touch()


def _require_idle(store: Store, project_id: str) -> None:
    marks = ", ".join("?" * len(OPEN_STATUSES))
    sql = f"SELECT execution_id FROM executions WHERE project_id = ? AND status IN ({marks}) LIMIT 1"
    busy = store.row(sql, (project_id, *OPEN_STATUSES))
    if busy is not None:
        raise ConflictError(f"execution {busy['execution_id']} of this project is under way")


def _as_row(project: Project) -> dict[str, Any]:
    return {
        "project_id": project.project_id, "name": project.name, "description": project.description,
        "timeout": project.timeout, "timeout_unit": project.timeout_unit,
        "retention_days": project.retention_days, "created_ns": project.created_ns,
        "updated_ns": project.updated_ns,
    }  # fmt: skip


def decode_roles(document: dict[str, Any], project_id: str) -> tuple[Role, ...]:
    """The roles that a body `{"items": [{userId | teamId, role}]}` lists. Raises: InvalidFieldsError."""
    form = Form(document)
    found: list[Role] = []
    for place, each in enumerate(form.items("items", most=_MOST_ROLES)):
        user_id = each.matching("userId", ULID, "expected a user's id", None) or ""
        team_id = each.matching("teamId", ULID, "expected a team's id", None) or ""
        role = Role(project_id, each.choice("role", ROLES), user_id, team_id)
        each.close()
        if bool(user_id) == bool(team_id):
            form.refuse(f"items[{place}]", "expected one of userId and teamId")
        elif any((known.user_id, known.team_id) == (user_id, team_id) for known in found):
            form.refuse(f"items[{place}]", "is there already")
        found.append(role)
    form.finish()
    return tuple(found)


def encode_role(role: Role) -> dict[str, Any]:
    """A role on the wire."""
    subject = {"userId": role.user_id} if role.user_id else {"teamId": role.team_id}
    return {**subject, "role": role.role}


def list_roles(store: Store, identity: Identity, project_id: str) -> tuple[Role, ...]:
    """Who has which role in a project. Raises: NotFoundError; DeniedError below MANAGER."""
    find_project(store, identity, project_id)
    identity.require_role(project_id, "MANAGER")
    return _roles(store, project_id)


def _roles(store: Store, project_id: str) -> tuple[Role, ...]:
    sql = "SELECT * FROM roles WHERE project_id = ? ORDER BY team_id, user_id"
    return tuple(_role_of(row) for row in store.rows(sql, (project_id,)))


def _role_of(row: sqlite3.Row) -> Role:
    return Role(row["project_id"], row["role"], row["user_id"] or "", row["team_id"] or "")


def set_roles(store: Store, identity: Identity, project_id: str, roles: tuple[Role, ...]) -> None:
    """Have these be all the roles in a project. Raises: NotFoundError; DeniedError."""
    find_project(store, identity, project_id)
    identity.require_administrator()
    with store.writing():
        before = _roles(store, project_id)
        store.execute("DELETE FROM roles WHERE project_id = ?", (project_id,))
        for role in roles:
            _add_role(store, role)
        documents = {
            name: {"items": [encode_role(each) for each in several]}
            for name, several in (("before", before), ("after", roles))
        }
        audit.record(store, identity, ("update", "roles", project_id), project_id=project_id, **documents)


def _add_role(store: Store, role: Role) -> None:
    table, column, subject = (
        ("users", "user_id", role.user_id) if role.user_id else ("teams", "team_id", role.team_id)
    )
    if store.row(f"SELECT 1 FROM {table} WHERE {column} = ?", (subject,)) is None:
        raise NotFoundError(f"no {column.removesuffix('_id')} {subject}")
    row = {
        "project_id": role.project_id, "role": role.role,
        "user_id": role.user_id or None, "team_id": role.team_id or None,
    }  # fmt: skip
    store.insert("roles", row)
