"""Users: added, changed, listed; who may sign in and who administers.

Owns their rows. Roles are the projects', passwords' form is `passwords`.
"""

from __future__ import annotations

import re

from ctrl_exec.common.errors import ConflictError, InvalidInputError, NotFoundError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.models import User
from ctrl_exec.tasks.people.passwords import hash_password
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,99}", re.ASCII)
NAME_EXPECTED = (
    "expected 1 to 100 of A-Z, a-z, 0-9, '.', '_', '@', '+', '-', beginning with a letter or digit"
)


def check_user_name(name: str) -> str:
    """Raises: InvalidInputError."""
    if not USER_NAME.fullmatch(name):
        raise InvalidInputError(f"name: {NAME_EXPECTED}", field="name")
    return name


def encode_user(user: User) -> dict[str, Any]:
    """The user on the wire; of the password only whether there is one."""
    return {
        "userId": user.user_id,
        "creationTs": user.created_ns,
        "updateTs": user.updated_ns,
        "name": user.name,
        "administratorFg": user.is_administrator,
        "enabledFg": user.is_enabled,
        "passwordFg": bool(user.password),
    }


def decode_user(document: dict[str, Any], current: User | None = None) -> User:
    """The user that a body describes; what it leaves out stays. Raises: InvalidFieldsError."""
    form = Form(document)
    known = current or User("", "", is_enabled=True)
    name = form.matching("name", USER_NAME, NAME_EXPECTED, *((known.name,) if current else ()))
    password = form.text("password", None, most=1024)
    hashed = known.password
    if password is not None:
        try:
            hashed = hash_password(password)
        except InvalidInputError as error:
            form.refuse("password", str(error).removeprefix("password: "))
    user = replace(
        known,
        name=name,
        password=hashed,
        is_administrator=form.flag("administratorFg", known.is_administrator),
        is_enabled=form.flag("enabledFg", known.is_enabled),
    )
    form.finish()
    return user


def find_user(store: Store, user_id: str) -> User:
    """Raises: NotFoundError."""
    row = store.row("SELECT * FROM users WHERE user_id = ?", (user_id,))
    if row is None:
        raise NotFoundError(f"no user {user_id[:40]}")
    return _of_row(row)


def find_user_by_name(store: Store, name: str) -> User | None:
    """The user of that name, in whatever case."""
    row = store.row("SELECT * FROM users WHERE name = ?", (name,))
    return None if row is None else _of_row(row)


def list_users(store: Store, *, limit: int = 50, after_id: str = "", having: str = "") -> tuple[User, ...]:
    """At most `limit` users, oldest first, those whose name holds a text."""
    sql = (
        "SELECT * FROM users WHERE user_id > ? AND instr(lower(name), lower(?)) > 0 ORDER BY user_id LIMIT ?"
    )
    return tuple(_of_row(row) for row in store.rows(sql, (after_id, having, limit)))


def add_user(store: Store, identity: Identity, draft: User) -> User:
    """A new user like the draft. Raises: ConflictError if the name is taken; DeniedError."""
    identity.require_administrator()
    now_ns = store.clock_ns()
    user = replace(draft, user_id=new_ulid(now_ns), created_ns=now_ns, updated_ns=now_ns)
    with store.writing():
        _refuse_taken(store, user)
        store.insert("users", _as_row(user))
        audit.record(store, identity, ("create", "user", user.user_id), after=encode_user(user))
    return user


def change_user(store: Store, identity: Identity, user: User) -> User:
    """Save a changed user; one who is off, or has another password, loses what was signed in with.

    Raises: NotFoundError; ConflictError; DeniedError.
    """
    identity.require_administrator()
    with store.writing():
        before = find_user(store, user.user_id)
        user = replace(user, updated_ns=store.clock_ns())
        _refuse_taken(store, user)
        _refuse_last(store, before, stays=user.is_administrator and user.is_enabled)
        row = _as_row(user)
        sets = ", ".join(f"{name} = ?" for name in row)
        store.execute(f"UPDATE users SET {sets} WHERE user_id = ?", (*row.values(), user.user_id))
        if user.password != before.password or not user.is_enabled:
            store.execute("DELETE FROM tokens WHERE user_id = ? AND kind != 'personal'", (user.user_id,))
        act = ("update", "user", user.user_id)
        audit.record(store, identity, act, before=encode_user(before), after=encode_user(user))
    return user


def remove_user(store: Store, identity: Identity, user_id: str) -> None:
    """Forget a user with their tokens and roles. Raises: NotFoundError; ConflictError; DeniedError."""
    identity.require_administrator()
    with store.writing():
        before = find_user(store, user_id)
        _refuse_last(store, before, stays=False)
        owned = store.row("SELECT name FROM tasks WHERE user_id = ? LIMIT 1", (user_id,))
        if owned is not None:
            raise ConflictError(
                f"{before.name} owns tasks such as {owned['name']}; set enabledFg to false instead"
            )
        store.execute("DELETE FROM users WHERE user_id = ?", (user_id,))
        audit.record(store, identity, ("delete", "user", user_id), before=encode_user(before))


def _refuse_taken(store: Store, user: User) -> None:
    other = find_user_by_name(store, user.name)
    if other is not None and other.user_id != user.user_id:
        raise ConflictError(f"there is a user {other.name} already")


def _refuse_last(store: Store, before: User, *, stays: bool) -> None:
    """Nobody locks everybody out: of the administrators who are on, one stays."""
    if stays or not (before.is_administrator and before.is_enabled):
        return
    sql = "SELECT 1 FROM users WHERE is_administrator AND is_enabled AND user_id != ?"
    if store.row(sql, (before.user_id,)) is None:
        raise ConflictError(f"{before.name} is the last administrator")


def _as_row(user: User) -> dict[str, Any]:
    return {
        "user_id": user.user_id, "name": user.name, "is_administrator": int(user.is_administrator),
        "is_enabled": int(user.is_enabled), "password": user.password, "created_ns": user.created_ns,
        "updated_ns": user.updated_ns,
    }  # fmt: skip


def _of_row(row: sqlite3.Row) -> User:
    content = dict(row)
    content |= {name: bool(content[name]) for name in ("is_administrator", "is_enabled")}
    return User(**content)
