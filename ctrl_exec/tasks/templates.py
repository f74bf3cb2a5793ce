"""`{{NAME}}` within one argument, an HTTP body or a query value: where it may stand and what comes out.

Owns the syntax and the escaping. A substitution never splits an argument. Knows no task.
"""

from __future__ import annotations

import re

from ctrl_exec.common.errors import InvalidInputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

# `{{{{` is a literal `{{`; it comes first, so that it is not the beginning of a template
_PART = re.compile(r"\{\{\{\{|\{\{([A-Z][A-Z0-9_]*)\}\}|\{\{")
LITERAL = "{{{{"


def names_in(text: str) -> tuple[str, ...]:
    """The names that a text refers to, in order.

    Raises: InvalidInputError for a `{{` that begins no template and is not doubled.
    """
    found = []
    for match in _PART.finditer(text):
        if match[1]:
            found.append(match[1])
        elif match[0] != LITERAL:
            raise InvalidInputError("expected {{NAME}} of A-Z, 0-9 and _, or {{{{ for a literal {{")
    return tuple(found)


def has_template(text: str) -> bool:
    """Whether anything in the text is a template or a doubled `{{`."""
    return "{{" in text


def mentions_name(text: str) -> bool:
    """Whether a name is referred to; for places where none may be, and `{{` has no meaning."""
    return any(match[1] for match in _PART.finditer(text))


def substitute(text: str, contents: Mapping[str, str], escape: Callable[[str], str] = str) -> str:
    """The text with each name replaced by its escaped content; a name without one by nothing."""

    def replaced(match: re.Match[str]) -> str:
        return escape(contents.get(match[1], "")) if match[1] else "{{"

    return _PART.sub(replaced, text)


def render_argument(text: str, contents: Mapping[str, str], may_dash: Collection[str]) -> str:
    """One argument of a command with its names replaced.

    `may_dash` are the names whose content may make it begin with `-`: a command could take what a
    caller typed for an option of its own.

    Raises: InvalidInputError if it begins with `-` through another name.
    """
    made = substitute(text, contents)
    if made.startswith("-") and not text.startswith("-"):
        name = _first_of(text, contents)
        if name not in may_dash:
            raise InvalidInputError(
                f"{name}: an argument would begin with '-' (allowLeadingDash)", field=name
            )
    return made


def _first_of(text: str, contents: Mapping[str, str]) -> str:
    """The name whose content stands first."""
    return next(name for name in names_in(text) if contents.get(name))


def json_escaped(text: str) -> str:
    """The text as it stands within a JSON string."""
    import json

    return json.dumps(text)[1:-1]


def query_escaped(text: str) -> str:
    """The text as it stands within a query value: everything but unreserved characters percent-encoded."""
    from urllib.parse import quote

    return quote(text, safe="")
