"""Names that become paths or log fields: one strict ASCII pattern each, matched whole.

They are checked at the edge, where a name comes in, and again where a path is built from it, so
that no route to the file system forgets (safety: Salt CVE-2017-12791 and its incomplete fix).
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import InvalidNameError

_LOWER = "abcdefghijklmnopqrstuvwxyz"
LETTERS = _LOWER + _LOWER.upper()
DIGITS = "0123456789"


class Spelling:
    """What a name may look like: its first character, the others, how many in all.

    Not a regular expression: `re` would cost every start of a command 5 ms.
    """

    __slots__ = ("_first", "_least", "_most", "_others")

    def __init__(self, first: str, others: str, least: int, most: int) -> None:
        self._first = frozenset(first)
        self._others = others
        self._least = least
        self._most = most

    def fullmatch(self, text: str) -> bool:
        """Whether the whole text is such a name."""
        if not text:
            return not self._least
        # strip takes characters of the set from both ends: nothing is left of a text that has no others
        return (
            self._least <= len(text) <= self._most and text[0] in self._first and not text.strip(self._others)
        )


AGENT_NAME = Spelling(_LOWER + DIGITS, _LOWER + DIGITS + "._-", 1, 253)
SCRIPT = Spelling(LETTERS + DIGITS + "_-", LETTERS + DIGITS + "_-", 1, 64)
REQID = Spelling(DIGITS + "abcdef", DIGITS + "abcdef", 8, 32)
DISPATCHER_ID = Spelling(LETTERS + DIGITS, LETTERS + DIGITS + "._-", 1, 253)
ACCOUNT = Spelling(_LOWER + "_", _LOWER + DIGITS + "_-", 1, 32)
"""Of a user or a group of the system."""
FINGERPRINT = Spelling(DIGITS + "abcdef", DIGITS + "abcdef", 64, 64)
"""Of a key: SHA-256 of its SPKI."""
TAG_KEY = Spelling(LETTERS + DIGITS, LETTERS + DIGITS + "._-", 1, 64)
TAG_VALUE = Spelling(LETTERS + DIGITS + "._:/@+-", LETTERS + DIGITS + "._:/@+-", 0, 128)


def check_agent_name(name: object, field: str = "host") -> str:
    """The agent name folded to lower case.

    Raises: InvalidNameError unless it matches `[a-z0-9][a-z0-9._-]{0,252}` after folding.
    """
    if isinstance(name, str) and name.isascii():
        folded = name.lower()
        if AGENT_NAME.fullmatch(folded):
            return folded
    raise InvalidNameError(
        f"{_shown(name)} is not an agent name: expected letters, digits, '.', '_' and '-', "
        "beginning with a letter or digit, at most 253",
        field=field,
    )


def check_script(name: object, field: str = "script") -> str:
    """The script name as it came.

    Raises: InvalidNameError unless it matches `[A-Za-z0-9_-]{1,64}`.
    """
    if isinstance(name, str) and SCRIPT.fullmatch(name):
        return name
    raise InvalidNameError(
        f"{_shown(name)} is not a script name: expected 1 to 64 letters, digits, '_' and '-'", field=field
    )


def check_reqid(name: object, field: str = "reqid") -> str:
    """The request id as it came: 16 hex digits of ours, 8 to 32 of older peers.

    Raises: InvalidNameError.
    """
    if isinstance(name, str) and REQID.fullmatch(name):
        return name
    raise InvalidNameError(
        f"{_shown(name)} is not a request id: expected 16 lower-case hex digits", field=field
    )


def check_dispatcher_id(name: object, field: str = "dispatcher_id") -> str:
    """The dispatcher id as it came.

    Raises: InvalidNameError unless it matches `[A-Za-z0-9][A-Za-z0-9._-]{0,252}`.
    """
    if isinstance(name, str) and DISPATCHER_ID.fullmatch(name):
        return name
    raise InvalidNameError(
        f"{_shown(name)} is not a dispatcher id: expected letters, digits, '.', '_' and '-'", field=field
    )


def new_reqid() -> str:
    """A fresh request id: 64 random bits as 16 lower-case hex digits."""
    # os.urandom is what `secrets` reads; importing `secrets` would load hashlib and hmac
    return os.urandom(8).hex()


def _shown(name: object) -> str:
    text = ascii(name)
    return text if len(text) <= 80 else text[:77] + "..."
