"""Schema sidecars: `<script>.schema.json` beside a script says what it is and which arguments it takes.

Owns their reading and their version. Does not check arguments against them: that is the dispatcher's.
"""

from __future__ import annotations

from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.files import read_bounded
from ctrl_exec.common.json_text import decoder, encoder
from ctrl_exec.common.names import DIGITS, LETTERS, Spelling
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIMIT_BYTES = 64 * 1024
SUFFIX = ".schema.json"
_VERSION = Spelling(LETTERS + DIGITS + "._-", LETTERS + DIGITS + "._-", 1, 64)


@value
class Sidecar:
    """The document of a sidecar and its version."""

    schema: dict[str, Any]
    version: str


def load_sidecar(script_path: str) -> Sidecar | None:
    """The sidecar of the script at that path, None if there is none.

    Raises: StorageError if there is one that can't be used, saying why.
    """
    path = script_path + SUFFIX
    try:
        content = read_bounded(path, LIMIT_BYTES, follow=True)
        schema = _decoded(content.decode("utf-8", "surrogatepass"))
        if not isinstance(schema, dict):
            raise ValueError("expected an object")
        return Sidecar(schema, schema_version(schema))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise StorageError(f"is no JSON object ({error})", path=path) from error


def schema_version(schema: dict[str, Any]) -> str:
    """Its own `version` where that is a plain word, else `sha256:` and 12 hex digits of its content.

    Raises: ValueError if it holds text that is no Unicode.
    """
    own = schema.get("version")
    if isinstance(own, str) and _VERSION.fullmatch(own):
        return own
    import hashlib

    canonical = _canonical(schema)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_decoded = decoder(parse_constant=_refuse)
_canonical = encoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
