"""`/docs`: a static page that renders the live document with RapiDoc, out of an installed package.

Owns the page's files and its policy. The page holds no data: it asks for a token and fetches the
document with it, or at once where everybody may. RapiDoc's script is read as a file from
`flask-openapi3-rapidoc`, of which nothing is imported; without the package the page says what to install.
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import NotFoundError
from ctrl_exec.common.files import read_bounded
from ctrl_exec.common.routing import Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.inquiry import Inquiry

RAPIDOC = "rapidoc-min.js"
_PACKAGE = "flask_openapi3_rapidoc"
_HERE = os.path.dirname(__file__)
_LIMIT_BYTES = 8 << 20
_FILES = {
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
    RAPIDOC: "text/javascript; charset=utf-8",
}
# RapiDoc styles its elements inline; scripts come from this server only
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)


def page(inquiry: Inquiry) -> Response:
    """`GET /docs`; marked as open where nobody needs a token."""
    content = read_bounded(os.path.join(_HERE, "docs.html"), _LIMIT_BYTES, follow=True)
    if inquiry.dispatcher.authority.is_open_to_all:
        content = content.replace(b"<body>", b'<body data-open="yes">', 1)
    return Response(200, (("Content-Type", "text/html; charset=utf-8"), *_HEADERS), content)


def asset(inquiry: Inquiry) -> Response:
    """`GET /docs/{file}`: the page's script and style, and RapiDoc."""
    name = inquiry.parameters["file"]
    if name not in _FILES:
        raise NotFoundError(f"there is nothing at /docs/{name[:80]}")
    path = rapidoc_path() if name == RAPIDOC else os.path.join(_HERE, name)
    if not path:
        raise NotFoundError("RapiDoc is not installed: pip install 'ctrl-exec[docs]'")
    content = read_bounded(path, _LIMIT_BYTES, follow=True)
    headers = (("Content-Type", _FILES[name]), ("Cache-Control", "private, max-age=3600"), *_HEADERS)
    return Response(200, headers, content)


def rapidoc_path() -> str:
    """Where the installed package keeps RapiDoc's one script; empty if it is not installed."""
    from importlib.util import find_spec

    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return ""
    path = os.path.join(found.submodule_search_locations[0], "templates", "rapidoc", "js", RAPIDOC)
    return path if os.path.isfile(path) else ""
