"""`GET /`, `/health`, `/openapi.json`, `/openapi-live.json`: what there is, for people and tools."""

from __future__ import annotations

import os

import ctrl_exec
from ctrl_exec.api.live import live_document
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.files import read_bounded
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.inquiry import Inquiry

SPEC_PATH = os.path.join(os.path.dirname(__file__), "openapi.json")
_SPEC_LIMIT_BYTES = 16 << 20


_HEALTHY = json_response(200, {"ok": True, "version": ctrl_exec.__version__})


def health(_inquiry: Inquiry) -> Response:
    """`GET /health`."""
    return _HEALTHY


def base_spec() -> bytes:
    """The static OpenAPI document as it is on disk. Raises: StorageError."""
    try:
        return read_bounded(SPEC_PATH, _SPEC_LIMIT_BYTES, follow=True)
    except FileNotFoundError as error:
        raise StorageError("the OpenAPI document is missing", path=SPEC_PATH) from error


def static_spec(_inquiry: Inquiry) -> Response:
    """`GET /openapi.json`, verbatim."""
    return Response(200, (), base_spec())


def live_spec(inquiry: Inquiry) -> Response:
    """`GET /openapi-live.json`."""
    return json_response(200, live_document(base_spec(), inquiry.dispatcher))
