"""The JSON that the command line and the daemon exchange."""

from __future__ import annotations

from ctrl_exec.common.json_text import dumps, encoder, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_encoded = encoder(ensure_ascii=False, separators=(",", ":"))


def read_document(body: bytes) -> Any:
    """Give the value of a JSON text. Raises: ValueError."""
    return loads(body.decode("utf-8"))


def write_document(document: Any) -> bytes:
    """Give the JSON of texts, numbers, truth values, lists and mappings of them, in UTF-8."""
    try:
        return _encoded(document).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        return dumps(document).encode("ascii")
