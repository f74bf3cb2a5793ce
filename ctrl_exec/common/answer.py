"""The form of every answer: status line, the headers all of them have, and the refusal envelope.

Owns how a `Response` becomes bytes. No sockets, no routes.
"""

from __future__ import annotations

from ctrl_exec.common.routing import Response, json_response
from ctrl_exec.common.second import this_second

REASONS = {
    100: "Continue", 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content",
    206: "Partial Content", 301: "Moved Permanently", 302: "Found", 303: "See Other",
    304: "Not Modified", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 408: "Request Timeout", 409: "Conflict",
    410: "Gone", 412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long",
    415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed",
    422: "Unprocessable Content", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip

ERROR_WORDS = {
    400: "bad request", 401: "unauthorized", 403: "forbidden", 404: "not found",
    405: "method not allowed", 408: "request timeout", 409: "conflict", 412: "precondition failed",
    413: "payload too large", 414: "uri too long", 415: "unsupported media type",
    416: "range not satisfiable", 417: "expectation failed", 429: "too many requests",
    431: "headers too large", 500: "server error", 501: "not implemented",
    503: "service unavailable", 505: "http version not supported",
}  # fmt: skip
"""The `error` word of each status, as core §4.2 lists them."""


def refusal(status: int, detail: str) -> Response:
    """The usual error envelope; a 503 says when to come back."""
    later = (("Retry-After", "1"),) if status == 503 else ()
    word = ERROR_WORDS.get(status, "bad request")
    return json_response(status, {"ok": False, "error": word, "detail": detail}, later)


_ONLY_JSON = (("Content-Type", "application/json"),)
_BARE_STATUSES = (100, 204)


def encode_head(
    response: Response, reqid: str, *, length: int | None, keep_alive: bool, version: str = "1.1"
) -> bytes:
    """The answer's first line and headers; a `length` of None and 1.1 means chunked.

    Raises: ValueError for a header that would break the framing.
    """
    if length is not None and response.headers == _ONLY_JSON and response.status not in _BARE_STATUSES:
        reason = REASONS.get(response.status, "Unknown")
        connection = "keep-alive" if keep_alive else "close"
        return (
            f"HTTP/{version} {response.status} {reason}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\nDate: {this_second().http}\r\nX-Request-Id: {reqid}\r\n"
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            f"Connection: {connection}\r\n\r\n"
        ).encode("latin-1", "replace")
    given = {name.lower() for name, _ in response.headers}
    lines = [f"HTTP/{version} {response.status} {REASONS.get(response.status, 'Unknown')}"]
    lines += [f"{name}: {content}" for name, content in response.headers]
    if response.status >= 200 and response.status != 204:
        if length is not None:
            lines.append(f"Content-Length: {length}")
        elif version == "1.1":
            lines.append("Transfer-Encoding: chunked")
        if "content-type" not in given:
            lines.append("Content-Type: application/json")
    lines.append(f"Date: {this_second().http}")
    lines.append(f"X-Request-Id: {reqid}")
    if "cache-control" not in given:
        lines.append("Cache-Control: no-store")
    lines.append("X-Content-Type-Options: nosniff")
    lines.append("Connection: keep-alive" if keep_alive else "Connection: close")
    if any("\r" in line or "\n" in line or "\0" in line for line in lines):
        raise ValueError("a line break in a response header")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def encode_whole(response: Response, reqid: str, *, keep_alive: bool = False, version: str = "1.1") -> bytes:
    """The whole answer in one piece. Its body must be bytes."""
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    head = encode_head(response, reqid, length=len(body), keep_alive=keep_alive, version=version)
    return head + body
