"""ULIDs: ids that sort by their time, 26 characters of Crockford's base 32.

Owns the form. Source: the ULID specification, https://github.com/ulid/spec.
"""

from __future__ import annotations

import os
import re

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# 128 bits in 26 characters of five: the first holds three bits only
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
_RANDOM_BITS = 80


def new_ulid(at_ns: int) -> str:
    """A fresh id whose time is the millisecond of `at_ns`, so that it equals its object's creation."""
    number = (at_ns // 1_000_000) << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8))
    return _written(number)


def first_ulid(at_ns: int) -> str:
    """The least id of that millisecond: every id made before sorts before it."""
    return _written((max(0, at_ns) // 1_000_000) << _RANDOM_BITS)


def _written(number: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def time_of(ulid: str) -> int:
    """The time of an id, in nanoseconds: its object's creation, to the millisecond."""
    number = 0
    for letter in ulid:
        number = number << 5 | _ALPHABET.index(letter)
    return (number >> _RANDOM_BITS) * 1_000_000
