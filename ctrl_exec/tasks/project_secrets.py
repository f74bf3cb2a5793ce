"""Secrets of projects: written, never shown; commands on the dispatcher get them as `CPS_<NAME>`.

Owns their rows and form on the wire, and that everything sealed is sealed anew when the key changes.
"""

from __future__ import annotations

from ctrl_exec.common.errors import ConflictError, NotFoundError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.models import Secret
from ctrl_exec.tasks.parameters import NAME, NAME_EXPECTED
from ctrl_exec.tasks.projects import find_project
from ctrl_exec.tasks.sealing import PARAMETERS
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.sealing import Place, Sealer
    from ctrl_exec.tasks.store import Store

CONTENT_LIMIT = 65536
_COLUMNS = "secret_id, project_id, name, created_ns, updated_ns"


def place_of(secret: Secret) -> Place:
    """Where a secret stands; its value opens nowhere else."""
    return ("secrets", secret.secret_id, secret.name)


def decode_secret(document: dict[str, Any], current: Secret | None = None) -> tuple[Secret, str]:
    """The secret that a body describes, and its value. Raises: InvalidFieldsError."""
    form = Form(document)
    known = current or Secret("", "", "")
    secret = replace(
        known, name=form.matching("name", NAME, NAME_EXPECTED, *((known.name,) if current else ()))
    )
    content = form.text("value", most=CONTENT_LIMIT, least=1)
    form.finish()
    return secret, content


def encode_secret(secret: Secret) -> dict[str, Any]:
    """The secret on the wire: never its value."""
    return {
        "secretId": secret.secret_id,
        "creationTs": secret.created_ns,
        "updateTs": secret.updated_ns,
        "projectId": secret.project_id,
        "name": secret.name,
    }


def list_secrets(store: Store, identity: Identity, project_id: str) -> tuple[Secret, ...]:
    """The names of a project's secrets. Raises: NotFoundError; DeniedError below MANAGER."""
    find_project(store, identity, project_id)
    identity.require_role(project_id, "MANAGER")
    rows = store.rows(f"SELECT {_COLUMNS} FROM secrets WHERE project_id = ? ORDER BY name", (project_id,))
    return tuple(Secret(**dict(row)) for row in rows)


def find_secret(store: Store, identity: Identity, project_id: str, secret_id: str) -> Secret:
    """Raises: NotFoundError; DeniedError."""
    found = [each for each in list_secrets(store, identity, project_id) if each.secret_id == secret_id]
    if not found:
        raise NotFoundError(f"no secret {secret_id[:40]}")
    return found[0]


def save_secret(store: Store, identity: Identity, sealer: Sealer, draft: Secret, content: str) -> Secret:
    """Add a secret (one without an id) to the draft's project, or give a known one a new value.

    Raises: NotFoundError; DeniedError; ConflictError if the name is taken; ServiceError without a key.
    """
    project_id = draft.project_id
    find_project(store, identity, project_id)
    identity.require_role(project_id, "MANAGER")
    now_ns = store.clock_ns()
    is_new = not draft.secret_id
    secret = replace(draft, updated_ns=now_ns)
    if is_new:
        secret = replace(secret, secret_id=new_ulid(now_ns), created_ns=now_ns)
    with store.writing():
        # within the transaction: a rotation of keys is either before it or after it
        sealed = sealer.seal(place_of(secret), content.encode("utf-8"))
        _refuse_taken(store, secret)
        row = {
            "secret_id": secret.secret_id, "project_id": project_id, "name": secret.name, "sealed": sealed,
            "created_ns": secret.created_ns, "updated_ns": now_ns,
        }  # fmt: skip
        store.execute("DELETE FROM secrets WHERE secret_id = ?", (secret.secret_id,))
        store.insert("secrets", row)
        act = ("create" if is_new else "update", "secret", secret.secret_id)
        shown = encode_secret(secret) | {"value": audit.MASK}
        audit.record(store, identity, act, project_id=project_id, after=shown)
    return secret


def remove_secret(store: Store, identity: Identity, project_id: str, secret_id: str) -> None:
    """Forget a secret. Raises: NotFoundError; DeniedError."""
    before = find_secret(store, identity, project_id, secret_id)
    with store.writing():
        store.execute("DELETE FROM secrets WHERE secret_id = ?", (secret_id,))
        act = ("delete", "secret", secret_id)
        audit.record(store, identity, act, project_id=project_id, before=encode_secret(before))


def _refuse_taken(store: Store, secret: Secret) -> None:
    sql = "SELECT 1 FROM secrets WHERE project_id = ? AND name = ? AND secret_id != ?"
    if store.row(sql, (secret.project_id, secret.name, secret.secret_id)) is not None:
        raise ConflictError(f"there is a secret {secret.name} in this project already")


def load_secrets(store: Store, sealer: Sealer, project_id: str) -> dict[str, str]:
    """A project's secrets by name, opened; for those who carry executions. Raises: StorageError."""
    found = {}
    for row in store.rows("SELECT * FROM secrets WHERE project_id = ?", (project_id,)):
        secret = Secret(row["secret_id"], project_id, row["name"])
        found[secret.name] = sealer.unseal(place_of(secret), row["sealed"]).decode("utf-8")
    return found


def reseal_all(store: Store, sealer: Sealer) -> int:
    """Seal everything anew under the newest key, in one transaction; gives how much there was."""
    count = 0
    with store.writing():
        for table, key, name in _SEALED:
            for row in store.rows(f"SELECT rowid AS place, * FROM {table} WHERE sealed IS NOT NULL"):
                place = _place(table, row[key], row[name] if name else "")
                sealed = sealer.seal(place, sealer.unseal(place, row["sealed"]))
                store.execute(f"UPDATE {table} SET sealed = ? WHERE rowid = ?", (sealed, row["place"]))
                count += 1
    return count


_SEALED = (
    ("secrets", "secret_id", "name"),
    ("notifiers", "notifier_id", ""),
    ("webhooks", "webhook_id", ""),
    ("executions", "execution_id", ""),
)


def _place(table: str, own_id: str, name: str) -> Place:
    return PARAMETERS if table == "executions" else (table, own_id, name or "secret")
