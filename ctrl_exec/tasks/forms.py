"""Reading a JSON object key by key: wrong types refused, never coerced, all faults told at once.

Owns how a fault is named (`steps[2].taskId`). Knows no object of the task layer. Source: tasks.md §1.
"""

from __future__ import annotations

import re

from ctrl_exec.common.errors import InvalidFieldsError
from ctrl_exec.common.value import MISSING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NAME_LIMIT = 200
_TEXT_LIMIT = 65536
_SHOWN_FAULTS = 10
MOST_WHOLE = 2**63 - 1
"""The largest integer that the database stores."""


class Form:
    """One object of a request. A key's reader gives its content, or what stands for it if it is faulty.

    `finish` raises what was found, unknown keys included: until then faults only gather.
    """

    def __init__(
        self, document: Mapping[str, Any], path: str = "", faults: dict[str, str] | None = None
    ) -> None:
        self._document = document
        self._path = path
        self._known: set[str] = set()
        self.faults: dict[str, str] = {} if faults is None else faults

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._document.get(key) is not None

    def refuse(self, key: str, expected: str) -> None:
        """Note that the content of a key is wrong."""
        self.faults.setdefault(self._path + key, expected)

    def _take(self, key: str, default: Any) -> Any:
        self._known.add(key)
        given = self._document.get(key, MISSING)
        if given is MISSING or (given is None and default is not MISSING):
            if default is MISSING:
                self.refuse(key, "required")
            return MISSING
        return given

    def _read(
        self, key: str, default: Any, is_right: Callable[[Any], bool], expected: str, *, spare: Any = None
    ) -> Any:
        given = self._take(key, default)
        if given is MISSING:
            return spare if default is MISSING else default
        if is_right(given):
            return given
        self.refuse(key, expected)
        return spare if default is MISSING else default

    def name(self, key: str = "name", default: Any = MISSING) -> Any:
        """One line of printable text that is not blank."""

        def is_right(given: Any) -> bool:
            return is_line(given) and bool(given.strip()) and len(given) <= _NAME_LIMIT

        expected = f"expected 1 to {_NAME_LIMIT} characters without control characters"
        return self._read(key, default, is_right, expected, spare="")

    def text(self, key: str, default: Any = MISSING, *, most: int = _TEXT_LIMIT, least: int = 0) -> Any:
        """Text of any kind; no NUL, which neither programs nor databases take."""

        def is_right(given: Any) -> bool:
            return is_storable(given) and least <= len(given) <= most

        return self._read(
            key, default, is_right, f"expected a string of {least} to {most} characters", spare=""
        )

    def matching(self, key: str, pattern: re.Pattern[str], expected: str, default: Any = MISSING) -> Any:
        """A string that matches as a whole."""

        def is_right(given: Any) -> bool:
            return isinstance(given, str) and bool(pattern.fullmatch(given))

        return self._read(key, default, is_right, expected, spare="")

    def flag(self, key: str, default: Any = MISSING) -> Any:
        """`true` or `false`."""
        return self._read(
            key, default, lambda given: isinstance(given, bool), "expected true or false", spare=False
        )

    def whole(self, key: str, least: int, most: int = MOST_WHOLE, default: Any = MISSING) -> Any:
        """A JSON integer within bounds."""

        def is_right(given: Any) -> bool:
            return is_whole(given) and least <= given <= most

        expected = f"expected an integer from {least} to {most}"
        if most == MOST_WHOLE:
            expected = f"expected an integer not below {least}"
        return self._read(key, default, is_right, expected, spare=least)

    def number(self, key: str, least: float, most: float, default: Any = MISSING) -> Any:
        """A JSON number within bounds."""

        def is_right(given: Any) -> bool:
            return isinstance(given, (int, float)) and not isinstance(given, bool) and least <= given <= most

        return self._read(
            key, default, is_right, f"expected a number from {least:g} to {most:g}", spare=least
        )

    def choice(
        self,
        key: str,
        words: Iterable[str],
        default: Any = MISSING,
        *,
        synonyms: Mapping[str, str] | None = None,
    ) -> Any:
        """One word of an enumeration, or a synonym of it; output has one spelling."""
        known = {word: word for word in words}
        spellings = {**(synonyms or {}), **known}

        def is_right(given: Any) -> bool:
            return isinstance(given, str) and given in spellings

        found = self._read(
            key, default, is_right, "expected one of " + ", ".join(known), spare=next(iter(known))
        )
        return spellings.get(found, found) if isinstance(found, str) else found

    def strings(
        self, key: str, default: Any = MISSING, *, most: int = 1024, least: int = 0, each_most: int = 131071
    ) -> Any:
        """A list of strings, as a tuple."""

        def is_right(given: Any) -> bool:
            return (
                isinstance(given, list)
                and least <= len(given) <= most
                and all(is_storable(each) and len(each) <= each_most for each in given)
            )

        expected = f"expected an array of {least} to {most} strings"
        found = self._read(key, default, is_right, expected, spare=())
        return tuple(found) if isinstance(found, list) else found

    def mapping(self, key: str, default: Any = MISSING, *, most: int = 256) -> Any:
        """An object with any keys that are text."""

        def is_right(given: Any) -> bool:
            return isinstance(given, dict) and len(given) <= most and all(map(is_storable, given))

        return self._read(key, default, is_right, f"expected an object of at most {most} keys", spare={})

    def inner(self, key: str, default: Any = MISSING) -> Form | None:
        """An object to be read on; None where it is absent or faulty."""
        found = self._read(key, default, lambda given: isinstance(given, dict), "expected an object")
        return Form(found, f"{self._path}{key}.", self.faults) if isinstance(found, dict) else None

    def items(self, key: str, default: Any = MISSING, *, most: int = 256) -> tuple[Form, ...]:
        """The objects of a list, each to be read on."""

        def is_right(given: Any) -> bool:
            return (
                isinstance(given, list)
                and len(given) <= most
                and all(isinstance(each, dict) for each in given)
            )

        found = self._read(key, default, is_right, f"expected an array of at most {most} objects", spare=[])
        return tuple(
            Form(each, f"{self._path}{key}[{place}].", self.faults) for place, each in enumerate(found or ())
        )

    def raw(self, key: str) -> Any:
        """The content as it came, None without one; for what depends on other keys."""
        given = self._take(key, None)
        return None if given is MISSING else given

    def close(self) -> None:
        """Note the keys that nobody read."""
        for key in self._document:
            if key not in self._known:
                self.refuse(ascii(key)[1:-1][:80], "unknown key")

    def finish(self) -> None:
        """Raises: InvalidFieldsError with all that was found."""
        self.close()
        raise_faults(self.faults)


def raise_faults(faults: Mapping[str, str]) -> None:
    """Raises: InvalidFieldsError if there are any."""
    if faults:
        shown = [f"{key}: {expected}" for key, expected in list(faults.items())[:_SHOWN_FAULTS]]
        more = [f"and {len(faults) - _SHOWN_FAULTS} more"] if len(faults) > _SHOWN_FAULTS else []
        raise InvalidFieldsError("; ".join(shown + more), dict(faults))


def is_whole(given: Any) -> bool:
    """Whether it is a JSON integer; `true` is none."""
    return isinstance(given, int) and not isinstance(given, bool)


def is_storable(given: Any) -> bool:
    """Whether it is text without NUL and lone surrogates."""
    return isinstance(given, str) and not _UNSTORABLE.search(given)


def is_line(given: Any) -> bool:
    """Whether it is text without any control character."""
    return is_storable(given) and not _CONTROL.search(given)
