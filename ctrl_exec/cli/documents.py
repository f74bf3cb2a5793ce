"""The JSON that the command line and the daemon exchange, without the price of the `json` package.

`json` imports `re` (with `enum`, `functools`, `collections`), half of what a command costs that the daemon
does the work for; its parts in C need none of that. Where they are not there, the package does it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_BLANKS = " \t\r\n"


class _Settings:
    """What the scanner asks its owner for: the defaults of `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner's own, asked for by name


def read_document(body: bytes) -> Any:
    """Give the value of a JSON text. Raises: ValueError."""
    text = body.decode("utf-8").strip(_BLANKS)
    try:
        import _json
    except ImportError:
        import json

        return json.loads(text)
    # typeshed knows the scanner's owner as a decoder only
    make_scanner: Any = _json.make_scanner
    scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_Settings())
    try:
        found, end = scan(text, 0)
    except StopIteration as error:
        raise ValueError("no JSON value") from error
    if end != len(text):
        raise ValueError(f"something behind the JSON value at character {end}")
    return found


def write_document(document: Any) -> bytes:
    """Give the JSON of texts, numbers, truth values, lists and mappings of them, in UTF-8."""
    text = _written(document)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        import json

        return json.dumps(document).encode("ascii")


def _written(each: Any) -> str:
    if isinstance(each, str):
        return _quoted(each)
    if isinstance(each, bool):
        return "true" if each else "false"
    if isinstance(each, (int, float)):
        return repr(each)
    if isinstance(each, dict):
        return "{" + ",".join(f"{_quoted(key)}:{_written(part)}" for key, part in each.items()) + "}"
    return "[" + ",".join(map(_written, each)) + "]"


def _quoted(text: str) -> str:
    try:
        from _json import encode_basestring
    except ImportError:
        import json

        return json.dumps(text, ensure_ascii=False)
    quoted: str = encode_basestring(text)
    return quoted
