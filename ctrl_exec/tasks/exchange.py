"""A project as one JSON document, out and in again without loss.

Owns the document's form and what an import makes of its ids: they stay where they are free, and are
replaced throughout where they are taken. Values of secrets never leave; an import says which have to be
set again. Every object passes the checks of any other write.
"""

from __future__ import annotations

import json

from ctrl_exec.common.errors import InvalidFieldsError, InvalidInputError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.checks import check_task
from ctrl_exec.tasks.codec import decode_task, encode_definition
from ctrl_exec.tasks.constants import decode_constant, encode_constant, load_constants, save_constant
from ctrl_exec.tasks.definitions import finder_of, insert_task, list_tasks
from ctrl_exec.tasks.forms import Form, raise_faults
from ctrl_exec.tasks.inbound.webhooks import decode_webhook, encode_webhook, list_webhooks, save_webhook
from ctrl_exec.tasks.models import Notifier, Project, Secret, Task, Webhook
from ctrl_exec.tasks.notification.notifiers import (
    NEEDS_SECRET,
    decode_notifier,
    encode_notifier,
    list_notifiers,
    save_notifier,
)
from ctrl_exec.tasks.parameters import NAME
from ctrl_exec.tasks.people.rights import rights_to_leave
from ctrl_exec.tasks.project_secrets import save_secret
from ctrl_exec.tasks.projects import add_project, decode_project, encode_project, find_project
from ctrl_exec.tasks.ulid import ULID, new_ulid, time_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.sealing import Sealer
    from ctrl_exec.tasks.store import Store

VERSION = 1
# what is decoded as a change of an object with that id, where what is left out would stay
_NEEDED = {"notifiers": ("name", "kind", "settings"), "webhooks": ("name", "taskId")}
KEYS = ("version", "project", "constants", "secrets", "notifiers", "tasks", "webhooks")
_MOST = 10_000
_OURS = frozenset(("creationTs", "updateTs", "projectId", "userId", "secretFg", "constantId"))
_IDS = {"tasks": "taskId", "notifiers": "notifierId", "webhooks": "webhookId"}
_COLUMNS = {"tasks": "task_id", "notifiers": "notifier_id", "webhooks": "webhook_id"}


def export_project(store: Store, identity: Identity, project_id: str) -> dict[str, Any]:
    """The project as one document. Raises: NotFoundError; DeniedError below MANAGER."""
    project = find_project(store, identity, project_id)
    identity.require_role(project_id, "MANAGER")
    secrets = store.rows("SELECT name FROM secrets WHERE project_id = ? ORDER BY name", (project_id,))
    tasks = list_tasks(store, identity, {"project_id": project_id}, limit=_MOST)
    notifiers = list_notifiers(store, identity, {"project_id": project_id}, limit=_MOST)
    webhooks = list_webhooks(store, identity, {"project_id": project_id}, limit=_MOST)
    return {
        "version": VERSION,
        "project": {"projectId": project_id, **_plain(encode_project(project))},
        "constants": [_plain(encode_constant(each)) for each in load_constants(store, project_id)],
        "secrets": [{"name": row["name"]} for row in secrets],
        "notifiers": [_plain(encode_notifier(each, has_secret=False)) for each, _ in notifiers],
        "tasks": [{"taskId": task.task_id, **_plain(encode_definition(task))} for task in tasks],
        "webhooks": [_plain(encode_webhook(each)) for each in webhooks],
    }


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    return {key: content for key, content in document.items() if key not in _OURS}


def import_project(
    store: Store, identity: Identity, sealer: Sealer, document: dict[str, Any]
) -> tuple[Project, dict[str, list[str]]]:
    """A new project as a document describes it, and the names of what needs its secret set again.

    Raises: InvalidFieldsError naming every fault (`tasks[3].cronExpression`), and then nothing was made;
    DeniedError for anyone but an administrator; ServiceError without a key for secrets.
    """
    identity.require_administrator()
    if not identity.user_id:
        raise InvalidInputError(f"there is no user {identity.username!r} to own the tasks", field="userId")
    _check_form(document)
    with store.writing():
        document = _with_free_ids(store, document)
        project = _add_project(store, identity, document["project"])
        incoming = _Import(store, identity, sealer, project.project_id)
        incoming.add_all(document)
        act = ("import", "project", project.project_id)
        audit.record(store, identity, act, project_id=project.project_id, after=encode_project(project))
    return project, incoming.to_set


def _check_form(document: dict[str, Any]) -> None:
    """The outline: the version, and the ids, of which none comes twice. Raises: InvalidFieldsError."""
    form = Form(document)
    form.whole("version", VERSION, VERSION)
    form.inner("project")
    for key in KEYS[2:]:
        ids = set()
        for each in form.items(key, (), most=_MOST):
            if key in _IDS:
                own_id = each.matching(_IDS[key], ULID, "expected an id")
                if own_id in ids:
                    each.refuse(_IDS[key], "is there already")
                ids.add(own_id)
                for needed in _NEEDED.get(key, ()):
                    if each.raw(needed) is None:
                        each.refuse(needed, "required")
            elif key == "secrets":
                each.matching("name", NAME, "expected a name")
                each.close()
    form.finish()


def _with_free_ids(store: Store, document: dict[str, Any]) -> dict[str, Any]:
    """The document with a new id, in every place, for each that is taken here."""
    text = json.dumps(document)
    for table, key in _IDS.items():
        for each in document.get(table) or ():
            known = f"SELECT 1 FROM {table} WHERE {_COLUMNS[table]} = ?"
            if store.row(known, (each[key],)) is not None:
                # an id is 26 characters that nothing else is: replacing the text finds every reference
                text = text.replace(each[key], new_ulid(store.clock_ns()))
    found: dict[str, Any] = json.loads(text)
    return found


def _add_project(store: Store, identity: Identity, document: dict[str, Any]) -> Project:
    own = dict(document)
    project_id = own.pop("projectId", "")
    faults: dict[str, str] = {}
    with _prefixed("project", faults):
        draft = decode_project(own)
    raise_faults(faults)
    return add_project(
        store, identity, replace(draft, project_id=project_id if isinstance(project_id, str) else "")
    )


class _prefixed:  # noqa: N801 - used like a function
    """Gathers the faults of one part under its place in the document."""

    def __init__(self, path: str, faults: dict[str, str]) -> None:
        self._path = path
        self._faults = faults

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: object, _trace: object) -> bool:
        if not isinstance(error, InvalidFieldsError):
            return False
        self._faults.update({f"{self._path}.{key}": each for key, each in error.fields.items()})
        return True


class _Import:
    """One import under way, within its transaction."""

    def __init__(self, store: Store, identity: Identity, sealer: Sealer, project_id: str) -> None:
        self._store = store
        self._identity = identity
        self._sealer = sealer
        self._project_id = project_id
        self._tasks: list[tuple[str, Task]] = []
        self.to_set: dict[str, list[str]] = {"secrets": [], "notifiers": [], "webhooks": []}

    def add_all(self, document: dict[str, Any]) -> None:
        """Add everything of the document. Raises: InvalidFieldsError."""
        faults: dict[str, str] = {}
        steps: tuple[tuple[str, Callable[[dict[str, Any], str], None]], ...] = (
            ("constants", self._add_constant), ("secrets", self._add_secret),
            ("notifiers", self._add_notifier), ("tasks", self._add_task),
        )  # fmt: skip
        for key, add in steps:
            for path, each in _places(document, key):
                with _prefixed(path, faults):
                    add(each, path)
        # a step may stand before the task it names: all are there now
        for path, task in self._tasks:
            with _prefixed(path, faults):
                check_task(self._store, task, finder_of(self._store, self._identity))
        raise_faults(faults)
        for path, each in _places(document, "webhooks"):
            with _prefixed(path, faults):
                self._add_webhook(each)
        raise_faults(faults)

    def _add_constant(self, document: dict[str, Any], _path: str) -> None:
        save_constant(self._store, self._identity, self._project_id, decode_constant(document))

    def _add_secret(self, document: dict[str, Any], _path: str) -> None:
        name = document["name"]
        save_secret(self._store, self._identity, self._sealer, Secret("", self._project_id, name), "")
        self.to_set["secrets"].append(name)

    def _add_notifier(self, document: dict[str, Any], _path: str) -> None:
        own = dict(document)
        own_id = own.pop("notifierId")
        known = Notifier(own_id, self._project_id, "", str(own.get("kind", "")), created_ns=time_of(own_id))
        draft, _ = decode_notifier(own, known)
        save_notifier(self._store, self._identity, self._sealer, draft, None)
        if draft.kind in NEEDS_SECRET:
            self.to_set["notifiers"].append(draft.name)

    def _add_task(self, document: dict[str, Any], path: str) -> None:
        own = dict(document)
        own_id = own.pop("taskId")
        draft = decode_task(own | {"projectId": self._project_id})
        task = replace(
            draft,
            task_id=own_id,
            user_id=self._identity.user_id,
            created_ns=time_of(own_id),
            updated_ns=self._store.clock_ns(),
            rights=rights_to_leave(self._identity),
        )
        insert_task(self._store, self._identity, task)
        self._tasks.append((path, task))

    def _add_webhook(self, document: dict[str, Any]) -> None:
        own = dict(document)
        own_id = own.pop("webhookId")
        known = Webhook(own_id, self._project_id, "", "", "GENERIC", created_ns=time_of(own_id))
        draft, _ = decode_webhook(own, known)
        save_webhook(self._store, self._identity, self._sealer, draft, None)
        self.to_set["webhooks"].append(draft.name)


def _places(document: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{key}[{place}]", each) for place, each in enumerate(document.get(key) or ()))
