"""Tokens: made, found by their secret, listed, revoked; only a SHA-256 of the secret is kept.

Owns the rows and the form of secrets: a prefix that secret scanners know and 32 random bytes in URL-safe
base 64. Who may do what with one is decided elsewhere. Source: tasks.md §2.
"""

from __future__ import annotations

import base64
import json
import os

from ctrl_exec.common.errors import NotFoundError
from ctrl_exec.tasks.models import Token
from ctrl_exec.tasks.store import packed
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

    from ctrl_exec.tasks.store import Store

PERSONAL = "personal"
ACCESS = "access"
REFRESH = "refresh"
PREFIXES = {PERSONAL: "ctpat_", ACCESS: "ctoat_", REFRESH: "ctort_"}
SCOPES = ("read", "execute", "write", "admin", "run")
"""`read` looks, `execute` starts and aborts, `write` edits, `admin` administers, `run` is the core's."""
_SECRET_BYTES = 32
_LONGEST_SECRET = 100
# last use is for people: a write for each request would cost more than it tells
_USE_NOTED_EVERY_NS = 60 * 10**9
_COLUMNS = (
    "token_id, user_id, kind, name, scopes, project_ids, created_ns, expires_ns, used_ns, revoked_ns, "
    "spent_ns, family_id, maker_id"
)


def digest_of(secret: str) -> bytes:
    """What is kept of a secret; 256 random bits need no salt and no slow hash."""
    import hashlib

    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def is_ours(secret: str) -> bool:
    """Whether the text looks like a token of the task layer."""
    return secret.startswith((PREFIXES[PERSONAL], PREFIXES[ACCESS]))


def create_token(store: Store, draft: Token) -> tuple[Token, str]:
    """A new token like the draft, with an id of its own, and its secret, which nobody sees again."""
    from ctrl_exec.common.value import replace

    now_ns = store.clock_ns()
    secret = PREFIXES[draft.kind] + base64.urlsafe_b64encode(os.urandom(_SECRET_BYTES)).decode("ascii")
    token = replace(draft, token_id=new_ulid(now_ns), created_ns=now_ns)
    row = {
        "token_id": token.token_id, "user_id": token.user_id, "kind": token.kind, "name": token.name,
        "digest": digest_of(secret), "scopes": packed(token.scopes), "project_ids": packed(token.project_ids),
        "created_ns": now_ns, "expires_ns": token.expires_ns, "family_id": token.family_id,
        "maker_id": token.maker_id,
    }  # fmt: skip
    store.insert("tokens", row)
    return token, secret


def find_secret(store: Store, secret: str) -> Token | None:
    """The token of a secret, whatever has become of it."""
    import hmac

    if len(secret) > _LONGEST_SECRET:
        return None
    digest = digest_of(secret)
    row = store.row(f"SELECT digest, {_COLUMNS} FROM tokens WHERE digest = ?", (digest,))
    if row is None or not hmac.compare_digest(row["digest"], digest):
        return None
    return _of_row(row)


def find_token(store: Store, token_id: str) -> Token:
    """Raises: NotFoundError."""
    row = store.row(f"SELECT {_COLUMNS} FROM tokens WHERE token_id = ?", (token_id,))
    if row is None:
        raise NotFoundError(f"no token {token_id[:40]}")
    return _of_row(row)


def list_personal(
    store: Store, user_id: str | None, *, limit: int = 50, after_id: str = "", having: str = ""
) -> tuple[Token, ...]:
    """Personal access tokens that were not revoked, of one user or of all, oldest first.

    Those whose name holds a text.
    """
    condition = "kind = 'personal' AND revoked_ns IS NULL AND token_id > ?"
    condition += " AND instr(lower(name), lower(?)) > 0"
    values: tuple[str | int, ...] = (after_id, having)
    if user_id is not None:
        condition += " AND user_id = ?"
        values += (user_id,)
    sql = f"SELECT {_COLUMNS} FROM tokens WHERE {condition} ORDER BY token_id LIMIT ?"
    return tuple(_of_row(row) for row in store.rows(sql, (*values, limit)))


def note_use(store: Store, token: Token) -> None:
    """Remember when the token was last used, to the minute."""
    now_ns = store.clock_ns()
    if token.used_ns is None or now_ns - token.used_ns > _USE_NOTED_EVERY_NS:
        store.execute("UPDATE tokens SET used_ns = ? WHERE token_id = ?", (now_ns, token.token_id))


def revoke_token(store: Store, token_id: str) -> bool:
    """End a token; False if it was over."""
    sql = "UPDATE tokens SET revoked_ns = ? WHERE token_id = ? AND revoked_ns IS NULL"
    return store.execute(sql, (store.clock_ns(), token_id)) == 1


def revoke_family(store: Store, family_id: str) -> int:
    """End all tokens that descend from one sign-in; gives how many."""
    sql = "UPDATE tokens SET revoked_ns = ? WHERE family_id = ? AND revoked_ns IS NULL"
    return store.execute(sql, (store.clock_ns(), family_id)) if family_id else 0


def revoke_line(store: Store, token_id: str) -> int:
    """End a personal token and all that descends from it: tokens it made, they made, or were given for them.

    Gives how many.
    """
    sql = """
    WITH RECURSIVE line (token_id) AS (
      SELECT ? UNION SELECT tokens.token_id FROM tokens JOIN line ON tokens.maker_id = line.token_id)
    UPDATE tokens SET revoked_ns = ?
    WHERE revoked_ns IS NULL AND (token_id IN line OR family_id IN line)
    """
    return store.execute(sql, (token_id, store.clock_ns()))


def find_root(store: Store, token_id: str) -> Token | None:
    """The personal token that a token is, or was given for; None where it goes back to a sign-in."""
    sql = f"""
    SELECT {_COLUMNS} FROM tokens WHERE kind = 'personal'
      AND token_id IN (?, (SELECT family_id FROM tokens WHERE token_id = ?))
    """
    row = store.row(sql, (token_id, token_id))
    return None if row is None else _of_row(row)


def spend(store: Store, token_id: str) -> bool:
    """Use a refresh token up; True for one of those who try at once."""
    sql = "UPDATE tokens SET spent_ns = ? WHERE token_id = ? AND spent_ns IS NULL AND revoked_ns IS NULL"
    return store.execute(sql, (store.clock_ns(), token_id)) == 1


def purge_tokens(store: Store, before_ns: int, *, most: int = 100) -> int:
    """Forget OAuth tokens that ended before then, at most so many; gives how many.

    A spent refresh token is kept until its own end: its re-use has to be noticed.
    """
    sql = """
    DELETE FROM tokens WHERE token_id IN (
      SELECT token_id FROM tokens WHERE kind != 'personal' AND expires_ns < ? LIMIT ?)
    """
    return store.execute(sql, (before_ns, most))


def purge_personal(store: Store, before_ns: int, *, most: int) -> int:
    """Forget personal tokens that ended before then, at most so many; gives how many.

    What descends from one has ended with it, or before.
    """
    sql = """
    DELETE FROM tokens WHERE token_id IN (
      SELECT token_id FROM tokens WHERE kind = 'personal' AND (expires_ns < ? OR revoked_ns < ?) LIMIT ?)
    """
    return store.execute(sql, (before_ns, before_ns, most))


def is_alive(token: Token, now_ns: int) -> bool:
    """Whether the token may be used: not revoked, not spent, not expired."""
    is_over = token.expires_ns is not None and token.expires_ns <= now_ns
    return token.revoked_ns is None and token.spent_ns is None and not is_over


def _of_row(row: sqlite3.Row) -> Token:
    content = {name: row[name] for name in _COLUMNS.split(", ")}
    content |= {name: tuple(json.loads(content[name])) for name in ("scopes", "project_ids")}
    return Token(**content)
