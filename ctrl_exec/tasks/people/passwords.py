"""Passwords: what is kept of one, and whether another is the same.

Owns the form of the record: `scrypt$N$r$p$salt$key`, base 64. Source: RFC 7914.
"""

from __future__ import annotations

import base64
import os

from ctrl_exec.common.errors import InvalidInputError

# 64 MiB and about 0.15 s: what a guess costs whoever gets hold of the database
_COST, _BLOCK, _PARALLEL = 1 << 16, 8, 1
_MEMORY_LIMIT = 128 << 20
_KEY_BYTES = 32
LEAST_CHARACTERS = 8
_MOST_BYTES = 1024


def check_password(password: str) -> str:
    """Raises: InvalidInputError for one that is too short, too long or not text."""
    if len(password) < LEAST_CHARACTERS:
        raise InvalidInputError(
            f"password: expected at least {LEAST_CHARACTERS} characters", field="password"
        )
    if len(password.encode("utf-8", "replace")) > _MOST_BYTES or "\x00" in password:
        raise InvalidInputError(f"password: expected at most {_MOST_BYTES} bytes, no NUL", field="password")
    return password


def hash_password(password: str) -> str:
    """What is kept of a password. Raises: InvalidInputError."""
    salt = os.urandom(16)
    key = _derive(check_password(password), salt, _COST, _BLOCK, _PARALLEL)
    shown = "$".join(base64.b64encode(each).decode("ascii") for each in (salt, key))
    return f"scrypt${_COST}${_BLOCK}${_PARALLEL}${shown}"


def is_password(record: str, password: str) -> bool:
    """Whether it is the password of the record; an empty record is a password's that nobody knows.

    The same work is done for an empty one, so that time does not tell who exists.
    """
    import hmac

    parts = (record or _NOBODY).split("$")
    cost, block, parallel = (int(each) for each in parts[1:4])
    salt, key = (base64.b64decode(each) for each in parts[4:])
    if len(password.encode("utf-8", "replace")) > _MOST_BYTES:
        return False
    return hmac.compare_digest(_derive(password, salt, cost, block, parallel), key) and bool(record)


_NOBODY = f"scrypt${_COST}${_BLOCK}${_PARALLEL}$AAAAAAAAAAAAAAAAAAAAAA==${'A' * 43}="


def _derive(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    import hashlib

    return hashlib.scrypt(
        password.encode("utf-8", "replace"),
        salt=salt, n=cost, r=block, p=parallel, maxmem=_MEMORY_LIMIT, dklen=_KEY_BYTES,
    )  # fmt: skip
