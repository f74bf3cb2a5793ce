"""JSON by the C part of `json` alone.

`json` imports `re`, and with it `enum`, `functools` and `collections`, for what it does where there is no
C part: 6 ms of a command's start and half a megabyte of an agent's memory. Where a text is no JSON, `json`
itself is asked to say what is wrong with it, in its own words. Owns the use of `_json`, and must not know
any document.
"""

from __future__ import annotations

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner, scanstring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Hook = Callable[[list[tuple[str, Any]]], Any]

__all__ = ["decoder", "dumps", "encoder", "end_of_string", "loads"]

_BLANKS = " \t\n\r"
_CONSTANTS = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}


class _Rules:
    """How a scanner reads, by the names it looks for."""

    strict = True
    object_hook = None
    parse_float = float
    parse_int = int

    def __init__(self, pairs: Hook | None, constant: Callable[[str], Any] | None) -> None:
        self.object_pairs_hook = pairs
        self.parse_constant = constant or _CONSTANTS.__getitem__


def decoder(
    *, object_pairs_hook: Hook | None = None, parse_constant: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """What reads one document, as `json.JSONDecoder(…).decode`. It raises ValueError, RecursionError."""

    def decode_slowly(text: str) -> Any:
        import json

        return json.loads(text, object_pairs_hook=object_pairs_hook, parse_constant=parse_constant)

    scan = make_scanner(_Rules(object_pairs_hook, parse_constant))  # type: ignore[arg-type]  # by their names

    def decode(text: str) -> Any:
        bare = text.strip(_BLANKS)
        try:
            found, end = scan(bare, 0)
        except (StopIteration, ValueError, SystemError):  # the last where its own class is not loaded
            end = -1
        return found if end == len(bare) else decode_slowly(text)

    return decode


def end_of_string(text: str, start: int) -> int:
    """Where the string ends whose first character, behind its quote, is there. Raises: ValueError."""
    try:
        return scanstring(text, start, True)[1]
    except SystemError:  # it is none, and the class that says so is not loaded
        import json.decoder  # noqa: F401

        return scanstring(text, start, True)[1]


def encoder(
    *,
    ensure_ascii: bool = True,
    separators: tuple[str, str] = (", ", ": "),
    default: Callable[[Any], Any] | None = None,
    sort_keys: bool = False,
) -> Callable[[Any], str]:
    """What writes one document, as `json.JSONEncoder(…).encode`; of NaN it makes `NaN`, as that does."""
    between, after_key = separators
    quote = encode_basestring_ascii if ensure_ascii else encode_basestring
    write = make_encoder(None, default or _refuse, quote, None, after_key, between, sort_keys, False, True)

    def encode(document: Any) -> str:
        return "".join(write(document, 0))

    return encode


def _refuse(thing: object) -> Any:
    raise TypeError(f"Object of type {type(thing).__name__} is not JSON serializable")


_decoded = decoder()
dumps = encoder()


def loads(text: str | bytes) -> Any:
    """The document; bytes are UTF-8. Raises: ValueError, RecursionError."""
    return _decoded(text.decode("utf-8", "surrogatepass") if isinstance(text, bytes) else text)
