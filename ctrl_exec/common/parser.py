"""The strict HTTP/1.x request parser: bytes in, one request out, or a `ProtocolError` with its status.

Owns the grammar and the size limits of a request; no sockets, no clock, no routes. Nothing is
repaired: where RFC 9112 lets a recipient choose between mending and refusing, this one refuses, so
that no second reader can come to another opinion of the same bytes.
"""

from __future__ import annotations

import re

from ctrl_exec.common.errors import ProtocolError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_VERSION = re.compile(rb"HTTP/[0-9]+(?:\.[0-9]+)?")
_PATH = re.compile(rb"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*")
# brackets are no query characters of RFC 3986, but browsers and curl send them as they are
_QUERY = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?\[\]]|%[0-9A-Fa-f]{2})*")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]+|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_LENGTH = re.compile(rb"[0-9]{1,10}")
_CODING = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(;.*)?", re.DOTALL)
_CHUNK_EXTENSIONS = re.compile(
    rb"(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:="
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|\"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e])*\"))?)+"
)
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT")
_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
# most requests are plain: what consists of these bytes only needs no regular expression, each of
# which would cost a forked child pages of its own
_PLAIN_TOKEN = bytes(sorted(_TOKEN_BYTES))
_PLAIN_FIELD = bytes((0x09, *range(0x20, 0x7F), *range(0x80, 0x100)))
_PLAIN_PATH = b"/ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_PLAIN_HOST = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-"
_DIGITS = "0123456789"
_LAST_PORT = "65535"
_FRAMING = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"})
_METHOD_LIMIT = 32
_EXTENSION_LIMIT_BYTES = 256
_CHUNK_LINE_LIMIT_BYTES = 8 + _EXTENSION_LIMIT_BYTES


@value
class ParserLimits:
    """How much of a request is read at all; beyond it the request is refused."""

    request_line_bytes: int = 8192
    header_lines: int = 64
    header_bytes: int = 32768
    body_bytes: int = 1 << 20


@value
class Head:
    """A request's first line and header fields, checked and decoded once.

    In `path` an escaped slash stays `%2F`, so that it never becomes a separator; all else is
    decoded. `OPTIONS *` has the path `*`.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    version: str
    headers: tuple[tuple[str, str], ...]
    keep_alive: bool
    expects_continue: bool
    content_length: int | None
    is_chunked: bool

    def header(self, name: str) -> str | None:
        """The first value of a field by its lower-case name."""
        for each, content in self.headers:
            if each == name:
                return content
        return None


class RequestParser:
    """One request, fed in pieces of any size.

    `leftover` is what was fed and not taken yet: of a request that is done, what came behind it. `body` is
    as much of the body as has come, without chunk framing. The outcome does not depend on how the bytes
    were cut into pieces.
    """

    def __init__(self, limits: ParserLimits) -> None:
        self._limits = limits
        self._step = self._request_line
        self._line: tuple[bytes, bytes, bytes] | None = None
        self._fields: list[tuple[str, str]] = []
        self._line_count = 0
        self._header_bytes = 0
        self._seen_empty_line = False
        self._wanted = 0
        self.leftover = bytearray()
        self.body = bytearray()
        self.head: Head | None = None
        self.is_done = False

    @property
    def has_started(self) -> bool:
        """Whether a byte of the request has come."""
        return bool(self.leftover) or self._line is not None or self._seen_empty_line

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the connection.

        Raises: ProtocolError; the parser is of no further use then.
        """
        self.leftover += chunk
        while not self.is_done and self._step():
            pass

    def check_leftover(self) -> None:
        """Make sure that what follows the request can be the beginning of another one.

        Raises: ProtocolError (400) if it is garbage.
        """
        rest = bytes(self.leftover)
        if not rest or rest in (b"\r", b"\r\n"):
            return
        rest = rest.removeprefix(b"\r\n")
        if not any(rest.startswith(each + b" ") or (each + b" ").startswith(rest) for each in _METHODS):
            raise ProtocolError(400, "bytes after the end of the request")

    # -- the steps; each takes what it can of what was fed and says whether to go on -----------

    def _request_line(self) -> bool:
        if not self.leftover:
            return False
        if self.leftover[0] not in _TOKEN_BYTES and not self._skip_empty_line():
            return False
        line = self._take_line(self._limits.request_line_bytes, 414, "request line")
        if line is None:
            return False
        self._line = _split_request_line(line)
        self._step = self._header_line
        return True

    def _skip_empty_line(self) -> bool:
        """Drop the one empty line RFC 9112 §2.2 lets a client send before a request."""
        if self._seen_empty_line or not b"\r\n".startswith(bytes(self.leftover[:2])):
            raise ProtocolError(400, "this is no HTTP request: expected a method")
        if len(self.leftover) < 2:
            return False
        del self.leftover[:2]
        self._seen_empty_line = True
        return bool(self.leftover) and self._skip_nothing_more()

    def _skip_nothing_more(self) -> bool:
        if self.leftover[0] not in _TOKEN_BYTES:
            raise ProtocolError(400, "this is no HTTP request: expected a method")
        return True

    def _header_line(self) -> bool:
        field = self._take_field()
        if field is None:
            return False
        if field:
            self._fields.append(field)
            return True
        assert self._line is not None
        self.head = head = _build_head(self._line, tuple(self._fields), self._limits.body_bytes)
        if head.is_chunked:
            self._step = self._chunk_size
        elif head.content_length:
            self._wanted = head.content_length
            self._step = self._sized_body
        else:
            self.is_done = True
        return True

    def _take_field(self) -> tuple[str, str] | tuple[()] | None:
        """The next header field, empty at the end of them, None while it has not come."""
        room = self._limits.header_bytes - self._header_bytes
        line = self._take_line(room if room > 0 else 0, 431, "header section")
        if not line:
            return None if line is None else ()
        self._line_count += 1
        self._header_bytes += len(line) + 2
        if self._line_count > self._limits.header_lines:
            raise ProtocolError(431, f"more than {self._limits.header_lines} header lines")
        name, colon, content = line.partition(b":")
        if line[0] in b" \t":
            raise ProtocolError(400, "a header line begins with a space (folding is obsolete)")
        if not colon or not name or name.translate(None, _PLAIN_TOKEN):
            raise ProtocolError(400, "a header line is not: name, colon, value")
        content = content.strip(b" \t")
        if content.translate(None, _PLAIN_FIELD):
            raise ProtocolError(400, "a control character in a header value")
        return name.decode("ascii").lower(), content.decode("latin-1")

    def _sized_body(self) -> bool:
        self._move_to_body()
        if not self._wanted:
            self.is_done = True
        return False

    def _move_to_body(self) -> None:
        taken = self.leftover[: self._wanted]
        self.body += taken
        del self.leftover[: len(taken)]
        self._wanted -= len(taken)

    def _chunk_size(self) -> bool:
        line = self._take_line(_CHUNK_LINE_LIMIT_BYTES, 400, "chunk size line")
        if line is None:
            return False
        self._wanted = _chunk_length(line)
        if len(self.body) + self._wanted > self._limits.body_bytes:
            raise ProtocolError(413, f"the body is larger than {self._limits.body_bytes} bytes")
        self._step = self._chunk_body if self._wanted else self._trailer_line
        return True

    def _chunk_body(self) -> bool:
        self._move_to_body()
        if self._wanted or not self.leftover:
            return False
        if not b"\r\n".startswith(bytes(self.leftover[:2])):
            raise ProtocolError(400, "a chunk does not end where its size says")
        if len(self.leftover) < 2:
            return False
        del self.leftover[:2]
        self._step = self._chunk_size
        return True

    def _trailer_line(self) -> bool:
        field = self._take_field()
        if field is None:
            return False
        if not field:
            self.is_done = True
        elif field[0] in _FRAMING:
            raise ProtocolError(400, "a trailer may not change the framing")
        return True

    def _take_line(self, limit_bytes: int, status: int, what: str) -> bytes | None:
        """The bytes before the next CRLF, or None while it has not come."""
        end = self.leftover.find(b"\n", 0, limit_bytes + 2)
        if end < 0:
            if len(self.leftover) >= limit_bytes + 2:
                raise ProtocolError(status, f"the {what} is too long")
            return None
        if end == 0 or self.leftover[end - 1] != 0x0D:
            raise ProtocolError(400, f"a bare line feed in the {what}")
        line = bytes(self.leftover[: end - 1])
        del self.leftover[: end + 1]
        return line


def _split_request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    parts = line.split(b" ")
    method = parts[0]
    if method not in _METHODS and (
        not method or len(method) > _METHOD_LIMIT or method.translate(None, _PLAIN_TOKEN)
    ):
        raise ProtocolError(400, "the method is no token of at most 32 characters")
    if len(parts) != 3:
        raise ProtocolError(400, "the request line is not: method, target and version, one space between")
    _, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise ProtocolError(505, "expected HTTP/1.0 or HTTP/1.1")
        raise ProtocolError(400, "the request line does not end in a version")
    return method, target, version


def _build_head(
    line: tuple[bytes, bytes, bytes], headers: tuple[tuple[str, str], ...], body_limit_bytes: int
) -> Head:
    method, target, version = line
    is_old = version == b"HTTP/1.0"
    ours: dict[str, list[str]] = {}
    for name, content in headers:
        if name in _FRAMING:
            ours.setdefault(name, []).append(content)
    host = _check_host(ours.get("host", ()), is_old)
    path, query = _split_target(method, target, host)
    is_chunked, length = False, None
    if "content-length" in ours or "transfer-encoding" in ours:
        is_chunked, length = _framing(ours, is_old)
    if length is not None and length > body_limit_bytes:
        raise ProtocolError(413, f"the body is larger than {body_limit_bytes} bytes")
    wishes = " ".join(ours["connection"]).lower().replace(",", " ").split() if "connection" in ours else ()
    keep_alive = not is_old and "close" not in wishes
    expects = "expect" in ours and _expects_continue(ours["expect"], is_old) and (is_chunked or bool(length))
    return Head(
        method.decode("ascii"), _decode_path(path) if b"%" in path else path.decode("ascii"),
        _decode_query(query) if query else (), "1.0" if is_old else "1.1", headers,
        keep_alive, expects, length, is_chunked,
    )  # fmt: skip


def _check_host(hosts: Sequence[str], is_old: bool) -> str:
    if not hosts and is_old:
        return ""
    if len(hosts) != 1:
        raise ProtocolError(400, "expected exactly one Host header")
    name, _, port = hosts[0].partition(":")
    is_plain = name and port and not name.strip(_PLAIN_HOST) and not port.strip(_DIGITS)
    if is_plain and len(port) <= len(_LAST_PORT) and port.zfill(len(_LAST_PORT)) <= _LAST_PORT:
        return hosts[0].lower()
    found = _HOST.fullmatch(hosts[0].encode("latin-1"))
    if found is None or int(found.group(1) or 0) > int(_LAST_PORT):
        raise ProtocolError(400, "the Host header is no host name with an optional port")
    return hosts[0].lower()


def _split_target(method: bytes, target: bytes, host: str) -> tuple[bytes, bytes]:
    """Path and query, both still escaped. Source: RFC 9112 §3.2."""
    if target == b"*" and method == b"OPTIONS":
        return b"*", b""
    absolute = None if target.startswith(b"/") else _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        authority, target = absolute.groups()
        if not _HOST.fullmatch(authority):
            raise ProtocolError(400, "the target names no valid host")
        if host and authority.decode("latin-1").lower() != host:
            raise ProtocolError(400, "the target names another host than the Host header")
        if not target and method == b"OPTIONS":
            return b"*", b""
        target = target if target.startswith(b"/") else b"/" + target
    path, _, query = target.partition(b"?")
    if target.startswith(b"/") and not target.translate(None, _PLAIN_PATH):
        return path, query
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise ProtocolError(400, "the target is not a path and query of RFC 3986 characters")
    return path, query


def _decode_path(path: bytes) -> str:
    return "/".join(_decode(part, "path").replace("/", "%2F") for part in path.split(b"/"))


def _decode(escaped: bytes, what: str) -> str:
    plain = _ESCAPE.sub(lambda found: bytes((int(found.group(1), 16),)), escaped)
    try:
        text = plain.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(400, f"the {what} is not UTF-8") from error
    if any(char < " " or char == "\x7f" for char in text):
        raise ProtocolError(400, f"a control character in the {what}")
    return text


def _decode_query(query: bytes) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for part in query.split(b"&"):
        if part:
            name, _, content = part.replace(b"+", b" ").partition(b"=")
            pairs.append((_decode(name, "query"), _decode(content, "query")))
    return tuple(pairs)


def _elements(lines: list[str]) -> list[str]:
    """The elements of a comma-separated field, lower case, over all its lines."""
    return [element.strip(" \t").lower() for content in lines for element in content.split(",")]


def _expects_continue(expected: list[str], is_old: bool) -> bool:
    if any(each.lower() != "100-continue" for each in expected):
        raise ProtocolError(417, "the only expectation met here is 100-continue")
    return not is_old


def _framing(ours: dict[str, list[str]], is_old: bool) -> tuple[bool, int | None]:
    """Whether the body that is announced is chunked, else its length. Source: RFC 9112 §6."""
    if "transfer-encoding" in ours:
        if "content-length" in ours:
            raise ProtocolError(400, "Content-Length together with Transfer-Encoding")
        _check_codings(_elements(ours["transfer-encoding"]), is_old)
        return True, None
    text = ours["content-length"][0]
    if any(each != text for each in ours["content-length"]) or not _LENGTH.fullmatch(text.encode("latin-1")):
        raise ProtocolError(400, "Content-Length is not one number of at most 10 digits")
    return False, int(text)


def _check_codings(codings: list[str], is_old: bool) -> None:
    if is_old:
        raise ProtocolError(400, "Transfer-Encoding in HTTP/1.0")
    if codings[-1] != "chunked" or codings.count("chunked") != 1:
        raise ProtocolError(400, "chunked must be the last transfer coding and appear once")
    if not all(_CODING.fullmatch(each) for each in codings):
        raise ProtocolError(400, "Transfer-Encoding is not a list of codings")
    if len(codings) > 1:
        raise ProtocolError(501, f"transfer coding {codings[0]} is not implemented")


def _chunk_length(line: bytes) -> int:
    found = _CHUNK_SIZE.fullmatch(line)
    if found is None:
        raise ProtocolError(400, "a chunk size is not 1 to 8 hex digits")
    extensions = found.group(2)
    if extensions is not None and (
        len(extensions) > _EXTENSION_LIMIT_BYTES or not _CHUNK_EXTENSIONS.fullmatch(extensions)
    ):
        raise ProtocolError(400, "a chunk extension is malformed or longer than 256 bytes")
    return int(found.group(1), 16)
