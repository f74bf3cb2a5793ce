"""Frames over a Unix socket: JSON objects of bounded length, with descriptors beside them.

Owns how both sides of `ctrl-exec-local` speak, not what they say.

    frame         length (4 bytes, big end first), then so many bytes of JSON in ASCII
    descriptors   beside the first byte of the frame they belong to
"""

from __future__ import annotations

import json
import os
import socket
import struct
from array import array

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import ServiceError
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

LIMIT_BYTES = 16 << 20
"""The longest frame: the kernel takes 2 MiB of arguments and environment, six bytes of JSON for each."""
_HEAD_BYTES = 4
_MOST_FDS = 2
_CREDENTIALS = struct.Struct("3i")
_PATIENCE_S = 10.0


class Channel:
    """One connection. Whoever has it takes the descriptors that came with a frame out of `fds`."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self.fds: list[int] = []

    def fileno(self) -> int:
        """What becomes readable when a frame comes, or the other side has hung up."""
        return self._stream.fileno()

    def peer_uid(self) -> int:
        """The user of the other side, as the kernel knows it. Source: unix(7), SO_PEERCRED."""
        found = self._stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(found)[1])

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one frame. Raises: ServiceError if the other side is gone, or does not read."""
        content = json.dumps(message).encode("ascii")
        frame = memoryview(len(content).to_bytes(_HEAD_BYTES, "big") + content)
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._stream.settimeout(_PATIENCE_S)
            sent = self._stream.sendmsg([frame], beside, socket.MSG_NOSIGNAL)
            if sent < len(frame):
                self._stream.sendall(frame[sent:], socket.MSG_NOSIGNAL)
        except OSError as error:
            raise ServiceError(f"the connection broke ({error.strerror or error})") from error

    def receive(self, patience_s: float = _PATIENCE_S) -> dict[str, Any]:
        """The next frame. Raises: ServiceError if none comes in time, or it is none."""
        deadline = monotonic() + patience_s
        length = int.from_bytes(self._take(_HEAD_BYTES, deadline), "big")
        if length > LIMIT_BYTES:
            raise ServiceError(f"a frame of {length} bytes, at most {LIMIT_BYTES} were expected")
        try:
            message = json.loads(self._take(length, deadline))
        except (ValueError, RecursionError) as error:
            raise ServiceError("a frame is not JSON") from error
        if not isinstance(message, dict):
            raise ServiceError("a frame is no JSON object")
        return message

    def _take(self, wanted: int, deadline: float) -> bytes:
        """Exactly so many bytes."""
        taken = bytearray()
        while len(taken) < wanted:
            try:
                self._stream.settimeout(max(0.001, deadline - monotonic()))
                chunk = self._receive_some(min(wanted - len(taken), 1 << 20))
            except TimeoutError as error:
                raise ServiceError("no answer in time") from error
            except OSError as error:
                raise ServiceError(f"the connection broke ({error.strerror or error})") from error
            if not chunk:
                raise ServiceError("the other side hung up")
            taken += chunk
        return bytes(taken)

    def _receive_some(self, most: int) -> bytes:
        room = socket.CMSG_SPACE(_MOST_FDS * array("i").itemsize)
        chunk, beside, _, _ = self._stream.recvmsg(most, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self.fds += found
        return chunk

    def take_fds(self) -> list[int]:
        """The descriptors that have come; they are the caller's to close from now on."""
        taken, self.fds = self.fds, []
        return taken

    def close(self) -> None:
        """Hang up."""
        for fd in self.take_fds():
            with suppress(OSError):
                os.close(fd)
        self._stream.close()
