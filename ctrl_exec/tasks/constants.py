"""Constants of projects: named values that commands get as `CPC_<NAME>` and templates as `{{NAME}}`.

Owns their rows and form on the wire; managers of the project write them.
"""

from __future__ import annotations

from ctrl_exec.common.errors import ConflictError, NotFoundError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.models import Constant
from ctrl_exec.tasks.parameters import NAME, NAME_EXPECTED
from ctrl_exec.tasks.projects import find_project
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

CONTENT_LIMIT = 65536


def decode_constant(document: dict[str, Any], current: Constant | None = None) -> Constant:
    """The constant that a body describes; what it leaves out stays. Raises: InvalidFieldsError."""
    form = Form(document)
    known = current or Constant("", "", "", "")
    kept = (known.name,) if current else ()
    constant = replace(
        known,
        name=form.matching("name", NAME, NAME_EXPECTED, *kept),
        content=form.text("value", *((known.content,) if current else ()), most=CONTENT_LIMIT),
    )
    form.finish()
    return constant


def encode_constant(constant: Constant) -> dict[str, Any]:
    """The constant on the wire."""
    return {
        "constantId": constant.constant_id,
        "creationTs": constant.created_ns,
        "updateTs": constant.updated_ns,
        "projectId": constant.project_id,
        "name": constant.name,
        "value": constant.content,
    }


def list_constants(store: Store, identity: Identity, project_id: str) -> tuple[Constant, ...]:
    """A project's constants by name. Raises: NotFoundError."""
    find_project(store, identity, project_id)
    return load_constants(store, project_id)


def load_constants(store: Store, project_id: str) -> tuple[Constant, ...]:
    """A project's constants, whoever asks; for those who carry executions."""
    rows = store.rows("SELECT * FROM constants WHERE project_id = ? ORDER BY name", (project_id,))
    return tuple(Constant(**dict(row)) for row in rows)


def find_constant(store: Store, identity: Identity, project_id: str, constant_id: str) -> Constant:
    """Raises: NotFoundError."""
    found = [each for each in list_constants(store, identity, project_id) if each.constant_id == constant_id]
    if not found:
        raise NotFoundError(f"no constant {constant_id[:40]}")
    return found[0]


def save_constant(store: Store, identity: Identity, project_id: str, draft: Constant) -> Constant:
    """Add a constant (one without an id), or save a changed one.

    Raises: NotFoundError; DeniedError; ConflictError if the name is taken.
    """
    find_project(store, identity, project_id)
    identity.require_role(project_id, "MANAGER")
    now_ns = store.clock_ns()
    is_new = not draft.constant_id
    constant = replace(draft, project_id=project_id, updated_ns=now_ns)
    if is_new:
        constant = replace(constant, constant_id=new_ulid(now_ns), created_ns=now_ns)
    with store.writing():
        before = None if is_new else find_constant(store, identity, project_id, constant.constant_id)
        _refuse_taken(store, constant)
        row = {
            "constant_id": constant.constant_id, "project_id": project_id, "name": constant.name,
            "content": constant.content, "created_ns": constant.created_ns, "updated_ns": now_ns,
        }  # fmt: skip
        store.execute("DELETE FROM constants WHERE constant_id = ?", (constant.constant_id,))
        store.insert("constants", row)
        documents = {
            "before": None if before is None else encode_constant(before),
            "after": encode_constant(constant),
        }
        act = ("create" if is_new else "update", "constant", constant.constant_id)
        audit.record(store, identity, act, project_id=project_id, **documents)
    return constant


def remove_constant(store: Store, identity: Identity, project_id: str, constant_id: str) -> None:
    """Forget a constant. Raises: NotFoundError; DeniedError; ConflictError while a template names it."""
    before = find_constant(store, identity, project_id, constant_id)
    identity.require_role(project_id, "MANAGER")
    with store.writing():
        sql = "SELECT name FROM tasks WHERE project_id = ? AND instr(definition, ?) > 0 LIMIT 1"
        user = store.row(sql, (project_id, f"{{{{{before.name}}}}}"))
        if user is not None:
            raise ConflictError(f"the task {user['name']!r} uses {before.name}")
        store.execute("DELETE FROM constants WHERE constant_id = ?", (constant_id,))
        act = ("delete", "constant", constant_id)
        audit.record(store, identity, act, project_id=project_id, before=encode_constant(before))


def _refuse_taken(store: Store, constant: Constant) -> None:
    sql = "SELECT 1 FROM constants WHERE project_id = ? AND name = ? AND constant_id != ?"
    if store.row(sql, (constant.project_id, constant.name, constant.constant_id)) is not None:
        raise ConflictError(f"there is a constant {constant.name} in this project already")
