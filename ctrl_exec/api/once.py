"""The `Idempotency-Key` header: which requests are one request.

Owns its form, and what of a body makes two requests the same: all of it but the credentials.
"""

from __future__ import annotations

import json

from ctrl_exec.api.inquiry import CREDENTIALS
from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.operations.once import Once
from ctrl_exec.services.idempotency import check_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.common.routing import Request

_HEADER = "idempotency-key"
REPLAYED = (("Idempotent-Replayed", "true"),)
"""The field of an answer that an earlier request got first."""


def once_of(request: Request, document: dict[str, Any]) -> Once:
    """The request's key, and its body in a form that spaces and the order of keys do not change.

    Raises: InvalidInputError unless there is exactly one key, and it is one.
    """
    given = [content for name, content in request.headers if name == _HEADER]
    if len(given) != 1:
        raise InvalidInputError("Idempotency-Key: expected one of them", field="Idempotency-Key")
    body = {name: each for name, each in document.items() if name not in CREDENTIALS}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return Once(check_key(given[0]), request.method, request.path, text.encode("ascii"))
