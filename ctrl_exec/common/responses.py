"""Reading HTTP/1.x responses, incrementally and within limits, for clients of ours.

Feeds on whatever bytes arrive; never reads a socket. Speaks to our agents and to older peers that
answer HTTP/1.0 and end the body by closing. Source: RFC 9112 §4–§7.
"""

from __future__ import annotations

from ctrl_exec.common.errors import PeerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_LIMIT_BYTES = 32 * 1024
MAX_HEADER_LINES = 64
_TOKEN = b"!#$%&'*+.^_`|~-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_REASON = bytes((9, *range(0x20, 0x100)))
_HEX = b"0123456789abcdefABCDEF"


STREAM_TYPE = "application/x-ndjson"


class ResponseParser:
    """One response: feed bytes until `is_done`; what is left over is in `rest`.

    `limit_bytes` bounds the body. With `stream_limit_bytes`, that bounds the body of a 200 of JSON lines
    instead, and the owner takes it piece by piece (`drain`).

    Raises: PeerError of kind `protocol` or `too large`.
    """

    def __init__(self, limit_bytes: int, stream_limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._stream_limit_bytes = stream_limit_bytes
        self.is_streaming = False  # whether the body is to be taken piece by piece
        self.status = 0
        self.version = "1.1"
        self.headers: dict[str, str] = {}
        self.is_done = False
        self._buffer = bytearray()
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._left: int | None = None  # bytes of the body or chunk still to come; None: until close
        # not a bound method: the cycle would keep the body until a garbage collection, which daemons
        # turn off
        self._step: Callable[[ResponseParser], bool] = ResponseParser._head

    @property
    def body(self) -> bytes:
        """The body so far."""
        return b"".join(self._body)

    def drain(self) -> bytes:
        """What has come of the body since the last time, no longer held here; empty unless it streams."""
        if not self.is_streaming:
            return b""
        pieces, self._body = self._body, []
        return b"".join(pieces)

    @property
    def body_bytes(self) -> int:
        """How much of the body has come."""
        return self._body_bytes

    @property
    def rest(self) -> bytes:
        """Bytes after the end of this response."""
        return bytes(self._buffer)

    @property
    def has_started(self) -> bool:
        """Whether anything has come at all."""
        return bool(self.status or self._buffer)

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection may be used again after this response."""
        tokens = {part.strip().lower() for part in self.headers.get("connection", "").split(",")}
        return self.version == "1.1" and "close" not in tokens and self._left is not None

    def feed(self, chunk: bytes) -> bool:
        """Take bytes; True once the response is whole."""
        self._buffer += chunk
        while not self.is_done and self._step(self):
            pass
        return self.is_done

    def end(self) -> None:
        """The peer closed. Raises: PeerError unless that ends the response."""
        if self.is_done:
            return
        if self._step is ResponseParser._until_close:
            self.is_done = True
            return
        raise PeerError("the agent closed the connection before its answer was whole")

    def _head(self) -> bool:
        if self._buffer[:7] != b"HTTP/1."[: len(self._buffer)]:
            raise PeerError("the answer is no HTTP")
        end = self._buffer.find(b"\r\n\r\n")
        if max(end, len(self._buffer) if end < 0 else 0) > HEAD_LIMIT_BYTES:
            raise PeerError(f"the answer's headers exceed {HEAD_LIMIT_BYTES} bytes", kind="too large")
        if end < 0:
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        if not _is_status_line(lines[0]):
            raise PeerError("the answer has a bad status line")
        if len(lines) > MAX_HEADER_LINES + 1:
            raise PeerError("the answer has too many headers")
        self.version, self.status = lines[0][5:8].decode("ascii"), int(lines[0][9:12])
        self.headers = {}
        for line in lines[1:]:
            self._header(line)
        if 100 <= self.status < 200:  # an interim response: the real one follows
            return True
        self._choose_framing()
        return True

    def _header(self, line: bytes) -> None:
        before, colon, after = line.partition(b":")
        if not before or not colon or before.strip(_TOKEN) or b"\0" in line or b"\n" in line:
            raise PeerError("the answer has a bad header line")
        name, text = before.decode("ascii").lower(), after.strip(b" \t").decode("latin-1")
        if name in self.headers and name in ("content-length", "transfer-encoding"):
            if self.headers[name] != text:
                raise PeerError(f"the answer has two {name} headers")
            return
        self.headers[name] = text

    def _choose_framing(self) -> None:
        # what is no stream comes whole, bounded: pieces of it would only have to be held elsewhere
        is_stream = self.headers.get("content-type", "").lower().startswith(STREAM_TYPE)
        if self._stream_limit_bytes is not None and self.status == 200 and is_stream:
            self.is_streaming = True
            self.limit_bytes = self._stream_limit_bytes
        length = self.headers.get("content-length")
        coding = self.headers.get("transfer-encoding")
        if self.status in (204, 304):
            self._left, self.is_done = 0, True
        elif coding is not None:
            if coding.strip().lower() != "chunked" or length is not None:
                raise PeerError("the answer has a transfer coding that is not chunked alone")
            self._left, self._step = 0, ResponseParser._chunk_size
        elif length is None:
            self._left, self._step = None, ResponseParser._until_close
        elif not (length.isascii() and length.isdigit() and len(length) <= 15):
            raise PeerError("the answer has a bad content-length")
        else:
            self._left = int(length)
            if self._left > self.limit_bytes:
                raise PeerError("answer too large", kind="too large")
            self._step = ResponseParser._counted
            self.is_done = self._left == 0

    def _take(self, count: int) -> None:
        self._body_bytes += count
        if self._body_bytes > self.limit_bytes:
            raise PeerError("answer too large", kind="too large")
        self._body.append(bytes(self._buffer[:count]))
        del self._buffer[:count]

    def _until_close(self) -> bool:
        if self._buffer:
            self._take(len(self._buffer))
        return False

    def _counted(self) -> bool:
        count = min(len(self._buffer), self._left or 0)
        if count:
            self._take(count)
            self._left = (self._left or 0) - count
        self.is_done = self._left == 0
        return False

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0 or end > 300:
            if len(self._buffer) > 300:
                raise PeerError("the answer has a bad chunk")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _chunk_size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        digits, semicolon, extension = line.partition(b";")
        digits = digits.rstrip(b" \t") if semicolon else digits
        if not 1 <= len(digits) <= 8 or digits.strip(_HEX) or len(extension) > 256 or b"\n" in extension:
            raise PeerError("the answer has a bad chunk size")
        self._left = int(digits, 16)
        self._step = ResponseParser._chunk if self._left else ResponseParser._trailer
        return True

    def _chunk(self) -> bool:
        count = min(len(self._buffer), self._left or 0)
        if count:
            self._take(count)
            self._left = (self._left or 0) - count
        if self._left or len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise PeerError("the answer has a bad chunk end")
        del self._buffer[:2]
        self._step = ResponseParser._chunk_size
        return True

    def _trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        self.is_done = not line
        return not self.is_done


def _is_status_line(line: bytes) -> bool:
    """Whether it is `HTTP/1.1 200`, with or without a reason behind. Source: RFC 9112 §4."""
    return (
        line[:8] in (b"HTTP/1.0", b"HTTP/1.1")
        and line[8:9] == b" "
        and line[9:10] in (b"1", b"2", b"3", b"4", b"5")
        and len(line) >= 12
        and line[9:12].isdigit()
        and (len(line) == 12 or (line[12:13] == b" " and not line.strip(_REASON)))
    )
