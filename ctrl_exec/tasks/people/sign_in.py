"""Signing in with a name and a password, at a pace that guessing cannot use.

Owns the count of failures by address and by account in a minute; it lives in the database, so that every
process and every restart knows it. Owns how many passwords are judged at once on this machine, too: each
takes 64 MiB, and whoever asks needs no credentials.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager

from ctrl_exec.common import files
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import BusyError, ThrottledError
from ctrl_exec.tasks.people.passwords import is_password
from ctrl_exec.tasks.people.users import find_user_by_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrl_exec.tasks.models import User
    from ctrl_exec.tasks.store import Store

OF_ADDRESS = 10
# an account's limit is higher: else anybody could lock anybody out with ten requests a minute
OF_ACCOUNT = 30
AT_ONCE = 4
PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.02
_MINUTE_S = 60
_LONGEST_NAME = 200


def sign_in(store: Store, username: str, password: str, source_ip: str) -> User | None:
    """The user, None if name or password are wrong, or the user is off.

    Raises: ThrottledError; BusyError if others are judged for half a minute on end.
    """
    subjects = {
        f"address {_network_of(source_ip)}": OF_ADDRESS,
        f"account {username.lower()[:_LONGEST_NAME]}": OF_ACCOUNT,
    }
    minute = _count_one(store, subjects)
    user = find_user_by_name(store, username) if len(username) <= _LONGEST_NAME else None
    try:
        with place(store.path, patience_s=PATIENCE_S):
            is_right = is_password("" if user is None else user.password, password)
    except BusyError:
        _count_off(store, subjects, minute)
        raise
    if user is None or not is_right or not user.is_enabled:
        return None
    _count_off(store, subjects, minute)
    return user


@contextmanager
def place(path: str, *, patience_s: float) -> Iterator[None]:
    """One of the places of this machine, held by the lock of a file. Raises: BusyError; StorageError."""
    deadline = monotonic() + patience_s
    while True:
        for number in range(AT_ONCE):
            fd = files.open_lock(f"{path}.sign-in-{number}", 0o600)
            try:
                if files.try_lock(fd):
                    yield
                    return
            finally:
                os.close(fd)
        if monotonic() >= deadline:
            raise BusyError("too many sign in at once; ask again")
        time.sleep(_LOOK_EVERY_S)


def _count_off(store: Store, subjects: dict[str, int], minute: int) -> None:
    with store.writing():
        for subject in subjects:
            sql = "UPDATE failures SET count = count - 1 WHERE subject = ? AND minute = ? AND count > 0"
            store.execute(sql, (subject, minute))


def _count_one(store: Store, subjects: dict[str, int]) -> int:
    """Count an attempt as failed before it is judged: many at once get no further than one by one.

    Gives the minute it counts in. Raises: ThrottledError.
    """
    second = store.clock_ns() // 10**9
    minute = second // _MINUTE_S
    with store.writing():
        for subject, most in subjects.items():
            row = store.row("SELECT count FROM failures WHERE subject = ? AND minute = ?", (subject, minute))
            if row is not None and row["count"] >= most:
                raise ThrottledError("too many failed sign-ins", retry_after_s=_MINUTE_S - second % _MINUTE_S)
        store.execute("DELETE FROM failures WHERE minute < ?", (minute,))
        for subject in subjects:
            store.execute(
                "INSERT INTO failures VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                (subject, minute),
            )
    return minute


def _network_of(source_ip: str) -> str:
    """The address itself, or of IPv6 the network that one who asks has all addresses of."""
    if ":" not in source_ip:
        return source_ip
    import ipaddress

    try:
        return str(ipaddress.ip_network(f"{source_ip.partition('%')[0]}/64", strict=False))
    except ValueError:
        return source_ip
