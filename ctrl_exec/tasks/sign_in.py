"""Signing in with a name and a password, at a pace that guessing cannot use.

Owns the count of failures by address and by account in a minute; it lives in the database, so that every
process and every restart knows it.
"""

from __future__ import annotations

from ctrl_exec.common.errors import ThrottledError
from ctrl_exec.tasks.passwords import is_password
from ctrl_exec.tasks.users import find_user_by_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.tasks.models import User
    from ctrl_exec.tasks.store import Store

OF_ADDRESS = 10
# an account's limit is higher: else anybody could lock anybody out with ten requests a minute
OF_ACCOUNT = 30
_MINUTE_S = 60
_LONGEST_NAME = 200


def sign_in(store: Store, username: str, password: str, source_ip: str) -> User | None:
    """The user, None if name or password are wrong, or the user is off. Raises: ThrottledError."""
    subjects = {f"address {source_ip}": OF_ADDRESS, f"account {username.lower()[:_LONGEST_NAME]}": OF_ACCOUNT}
    second = store.clock_ns() // 10**9
    minute = second // _MINUTE_S
    for subject, most in subjects.items():
        row = store.row("SELECT count FROM failures WHERE subject = ? AND minute = ?", (subject, minute))
        if row is not None and row["count"] >= most:
            raise ThrottledError("too many failed sign-ins", retry_after_s=_MINUTE_S - second % _MINUTE_S)
    user = find_user_by_name(store, username) if len(username) <= _LONGEST_NAME else None
    is_right = is_password("" if user is None else user.password, password)
    if user is not None and is_right and user.is_enabled:
        return user
    with store.writing():
        store.execute("DELETE FROM failures WHERE minute < ?", (minute,))
        for subject in subjects:
            store.execute(
                "INSERT INTO failures VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                (subject, minute),
            )
    return None
