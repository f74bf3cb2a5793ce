"""Telling schedulers that something has changed: a datagram to each socket of one directory.

Owns that directory. A message says nothing but "look"; what has changed is in the database. So a lost
one costs time only (schedulers look by themselves now and then), and a forged one a look.
"""

from __future__ import annotations

import os
import socket

from ctrl_exec.common import files
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.suppression import suppress

_DIRECTORY_MODE = 0o2770
_SOCKET_MODE = 0o660
_WORD = b"look"


class WakeSocket:
    """A scheduler's own socket, readable once somebody has woken it."""

    def __init__(self, directory: str) -> None:
        """Raises: StorageError."""
        files.make_dirs(directory, _DIRECTORY_MODE)
        self._path = os.path.join(directory, f"{os.getpid()}-{os.urandom(4).hex()}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            with _Directory(directory) as near:
                address = f"{near}/{os.path.basename(self._path)}"
                self._socket.bind(address)
                os.chmod(address, _SOCKET_MODE)
        except OSError as error:
            self._socket.close()
            raise StorageError(error.strerror or str(error), path=self._path) from error

    def fileno(self) -> int:
        """The descriptor to wait at."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Whether somebody has woken us since the last time."""
        is_woken = False
        with suppress(BlockingIOError):
            while self._socket.recv(len(_WORD)):
                is_woken = True
        return is_woken

    def close(self) -> None:
        """Take the socket away."""
        self._socket.close()
        with suppress(OSError):
            os.unlink(self._path)


def wake_schedulers(directory: str) -> None:
    """Wake every scheduler that listens there. Sockets of dead ones are removed."""
    with (
        suppress(OSError),
        _Directory(directory) as near,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
    ):
        for name in os.listdir(near):
            try:
                sender.sendto(_WORD, f"{near}/{name}")
            except ConnectionRefusedError:
                with suppress(OSError):
                    os.unlink(f"{near}/{name}")
            except OSError:  # among them a queue that is full: more than enough to be woken by
                continue


class _Directory:
    """A directory under a short name: an address of a Unix socket has 107 bytes at most (unix(7))."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
