"""Notifiers as objects: where news of executions go. Sending is not their business.

Owns their rows, the settings of each kind, and that what is secret in them is written and never shown.
"""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

from ctrl_exec.common.errors import ConflictError, InvalidFieldsError, NotFoundError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.models import NOTIFIER_KINDS, Notifier
from ctrl_exec.tasks.projects import find_project, narrowed, visible_condition
from ctrl_exec.tasks.store import packed
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.sealing import Place, Sealer
    from ctrl_exec.tasks.store import Store

_URL = re.compile(r"https?://[^\s/?#@\\]+([/?][^\s#\\]*)?", re.IGNORECASE)
_ADDRESS = re.compile(r"[^\s@,;<>\"()\x00-\x20\x7f]{1,64}@[A-Za-z0-9.-]{1,253}")
_CHATS = ("SLACK", "MATTERMOST", "DISCORD", "TEAMS")
_URL_EXPECTED = "expected http:// or https:// with a host and no fragment"
SECRET_LIMIT = 4096
_COLUMNS = (
    "notifier_id, project_id, name, kind, settings, is_enabled, created_ns, updated_ns,"
    " sealed IS NOT NULL AS has_secret"
)
# whose address is the secret itself, for whoever knows it may post there
NEEDS_SECRET = _CHATS


def decode_notifier(document: dict[str, Any], current: Notifier | None = None) -> tuple[Notifier, str | None]:
    """The notifier that a body describes, and its secret if it brings one; what it leaves out stays.

    Raises: InvalidFieldsError.
    """
    form = Form(document)
    known = current or Notifier("", "", "", "")
    notifier = replace(
        known,
        project_id=form.text("projectId", *_kept(current, known.project_id), most=64, least=1),
        name=form.name("name", *_kept(current, known.name)),
        kind=form.choice("kind", NOTIFIER_KINDS, *_kept(current, known.kind)),
        is_enabled=form.flag("enabledFg", known.is_enabled),
    )
    if current is not None and (notifier.project_id, notifier.kind) != (known.project_id, known.kind):
        form.refuse("kind", "expected no change of project or kind")
    settings = form.inner("settings", None)
    if settings is not None:
        notifier = replace(notifier, settings=_decode_settings(settings, notifier.kind))
    elif current is None:
        notifier = replace(
            notifier, settings=_decode_settings(Form({}, "settings.", form.faults), notifier.kind)
        )
    secret = form.text("secret", None, most=SECRET_LIMIT, least=1)
    _check_secret(form, notifier.kind, secret, is_new=current is None)
    form.finish()
    return notifier, secret


def _kept(current: Notifier | None, content: str) -> tuple[str, ...]:
    return () if current is None else (content,)


def _decode_settings(form: Form, kind: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if kind == "EMAIL":
        settings["to"] = list(form.strings("to", least=1, most=100, each_most=320))
        for place, address in enumerate(settings["to"]):
            if not _ADDRESS.fullmatch(address):
                form.refuse(f"to[{place}]", "expected an address such as ops@example.net")
    elif kind in ("NTFY", "WEBHOOK"):
        settings["url"] = form.matching("url", _URL, _URL_EXPECTED)
    form.close()
    return settings


def _check_secret(form: Form, kind: str, secret: str | None, *, is_new: bool) -> None:
    if kind in NEEDS_SECRET:
        if secret is None and is_new:
            form.refuse("secret", "required: the address that the service gave for posting")
        elif secret is not None and not _URL.fullmatch(secret):
            form.refuse("secret", _URL_EXPECTED)
    elif kind == "EMAIL" and secret is not None:
        form.refuse("secret", "expected none: the SMTP server is configured by the administrator")


def encode_notifier(notifier: Notifier, *, has_secret: bool) -> dict[str, Any]:
    """The notifier on the wire; of its secret only whether there is one."""
    return {
        "notifierId": notifier.notifier_id,
        "creationTs": notifier.created_ns,
        "updateTs": notifier.updated_ns,
        "projectId": notifier.project_id,
        "name": notifier.name,
        "kind": notifier.kind,
        "settings": notifier.settings,
        "enabledFg": notifier.is_enabled,
        "secretFg": has_secret,
    }


def place_of(notifier: Notifier) -> Place:
    """Where its secret stands."""
    return ("notifiers", notifier.notifier_id, "secret")


def find_notifier(store: Store, identity: Identity, notifier_id: str) -> tuple[Notifier, bool]:
    """The notifier, and whether it has a secret. Raises: NotFoundError, also where one has no role."""
    missing = f"no notifier {notifier_id[:40]}"
    row = store.row(f"SELECT {_COLUMNS} FROM notifiers WHERE notifier_id = ?", (notifier_id,))
    if row is None:
        raise NotFoundError(missing)
    identity.require_role(row["project_id"], what=missing)
    return _of_row(row)


def list_notifiers(
    store: Store, identity: Identity, wanted: dict[str, str], *, limit: int = 50, after_id: str = ""
) -> tuple[tuple[Notifier, bool], ...]:
    """At most `limit` of those one may see, oldest first; `wanted`: project_id, kind, having (of the name).

    Raises: NotFoundError without a role in the project.
    """
    condition, values = visible_condition(identity)
    if "project_id" in wanted:
        find_project(store, identity, wanted["project_id"])
    more, filters = narrowed(wanted, ("project_id", "kind"))
    sql = f"""
    SELECT {_COLUMNS} FROM notifiers WHERE {condition} AND {more} AND notifier_id > ?
    ORDER BY notifier_id LIMIT ?
    """
    return tuple(_of_row(row) for row in store.rows(sql, (*values, *filters, after_id, limit)))


def save_notifier(
    store: Store, identity: Identity, sealer: Sealer, draft: Notifier, secret: str | None
) -> tuple[Notifier, bool]:
    """Add a notifier (one without an id), or save a changed one; a secret of None stays what it is.

    Raises: NotFoundError; DeniedError; ConflictError if the name is taken; ServiceError without a key;
    InvalidFieldsError where a secret would be given to another server than it was set for.
    """
    find_project(store, identity, draft.project_id)
    identity.require_role(draft.project_id, "MANAGER")
    now_ns = store.clock_ns()
    is_new = not draft.notifier_id
    notifier = replace(draft, updated_ns=now_ns)
    if is_new:
        notifier = replace(notifier, notifier_id=new_ulid(now_ns), created_ns=now_ns)
    with store.writing():
        taken = "SELECT 1 FROM notifiers WHERE project_id = ? AND name = ? AND notifier_id != ?"
        if store.row(taken, (notifier.project_id, notifier.name, notifier.notifier_id)) is not None:
            raise ConflictError(f"there is a notifier {notifier.name!r} in this project already")
        if secret is None:
            _refuse_another_server(store, notifier)
        _write(store, notifier)
        if secret is not None:
            sealed = sealer.seal(place_of(notifier), secret.encode("utf-8"))
            sql = "UPDATE notifiers SET sealed = ? WHERE notifier_id = ?"
            store.execute(sql, (sealed, notifier.notifier_id))
        _, has_secret = find_notifier(store, identity, notifier.notifier_id)
        act = ("create" if is_new else "update", "notifier", notifier.notifier_id)
        shown = encode_notifier(notifier, has_secret=has_secret)
        audit.record(store, identity, act, project_id=notifier.project_id, after=shown)
    return notifier, has_secret


def _refuse_another_server(store: Store, notifier: Notifier) -> None:
    """Who may change the address must not learn by that what was set before. Raises: InvalidFieldsError."""
    sql = "SELECT settings FROM notifiers WHERE notifier_id = ? AND kind = 'NTFY' AND sealed IS NOT NULL"
    row = store.row(sql, (notifier.notifier_id,))
    if row is None:
        return
    before, after = (urlsplit(each["url"])[:2] for each in (json.loads(row["settings"]), notifier.settings))
    if before != after:
        expected = "required: the one that was set is for another server"
        raise InvalidFieldsError(f"secret: {expected}", {"secret": expected})


def _write(store: Store, notifier: Notifier) -> None:
    sql = """
    INSERT INTO notifiers (notifier_id, project_id, name, kind, settings, is_enabled, created_ns, updated_ns)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (notifier_id) DO UPDATE SET name = excluded.name, settings = excluded.settings,
      is_enabled = excluded.is_enabled, updated_ns = excluded.updated_ns
    """
    own = (notifier.notifier_id, notifier.project_id, notifier.name, notifier.kind, packed(notifier.settings))
    store.execute(sql, (*own, int(notifier.is_enabled), notifier.created_ns, notifier.updated_ns))


def remove_notifier(store: Store, identity: Identity, notifier_id: str) -> None:
    """Forget a notifier. Raises: NotFoundError; DeniedError; ConflictError while a task names it."""
    before, has_secret = find_notifier(store, identity, notifier_id)
    identity.require_role(before.project_id, "MANAGER")
    with store.writing():
        sql = "SELECT name FROM tasks WHERE project_id = ? AND instr(definition, ?) > 0 LIMIT 1"
        user = store.row(sql, (before.project_id, notifier_id))
        if user is not None:
            raise ConflictError(f"the task {user['name']!r} uses this notifier")
        store.execute("DELETE FROM notifiers WHERE notifier_id = ?", (notifier_id,))
        act = ("delete", "notifier", notifier_id)
        shown = encode_notifier(before, has_secret=has_secret)
        audit.record(store, identity, act, project_id=before.project_id, before=shown)


def load_notifier(store: Store, sealer: Sealer, notifier_id: str) -> tuple[Notifier, str] | None:
    """A notifier and its secret (empty without one), for those who send; None if it is gone.

    Raises: StorageError if the secret does not open.
    """
    row = store.row(f"SELECT {_COLUMNS}, sealed FROM notifiers WHERE notifier_id = ?", (notifier_id,))
    if row is None:
        return None
    notifier, _ = _of_row(row)
    sealed = row["sealed"]
    return notifier, "" if sealed is None else sealer.unseal(place_of(notifier), sealed).decode("utf-8")


def _of_row(row: sqlite3.Row) -> tuple[Notifier, bool]:
    notifier = Notifier(
        notifier_id=row["notifier_id"],
        project_id=row["project_id"],
        name=row["name"],
        kind=row["kind"],
        settings=json.loads(row["settings"]),
        is_enabled=bool(row["is_enabled"]),
        created_ns=row["created_ns"],
        updated_ns=row["updated_ns"],
    )
    return notifier, bool(row["has_secret"])
