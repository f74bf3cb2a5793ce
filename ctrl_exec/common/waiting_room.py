"""Accepted sockets that the parent of a server keeps for a while, each with a deadline.

Owns those that have not said a word yet, and those that were turned away and must be able to read
why. A connection costs a process only once it has sent something.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_READ_BYTES = 65536
_DRAIN_LIMIT_BYTES = 1 << 20


class Guest:
    """One socket in the room."""

    __slots__ = ("address", "deadline", "drained_bytes", "socket")

    def __init__(self, sock: socket.socket, address: object, deadline: float) -> None:
        self.socket = sock
        self.address = address
        self.deadline = deadline
        self.drained_bytes = 0


class WaitingRoom:
    """Up to `limit` sockets, watched by the server's epoll set; a newcomer beyond it ends the oldest.

    All stay for the same time, so that the order of arrival is the order of deadlines.
    """

    def __init__(self, watched: select.epoll, limit: int, stay_s: float) -> None:
        self._watched = watched
        self._limit = limit
        self._stay_s = stay_s
        self.guests: dict[int, Guest] = {}

    def __len__(self) -> int:
        return len(self.guests)

    def __contains__(self, fd: int) -> bool:
        return fd in self.guests

    def add(self, sock: socket.socket, address: object) -> None:
        """Keep the socket until it is readable, or its time is over."""
        if len(self.guests) >= self._limit:
            self.drop_oldest()
        fd = sock.fileno()
        self.guests[fd] = Guest(sock, address, time.monotonic() + self._stay_s)
        self._watched.register(fd, select.EPOLLIN)

    def take(self, fd: int) -> Guest:
        """Take the socket out; it is the caller's now."""
        guest = self.guests.pop(fd)
        self._watched.unregister(fd)
        return guest

    def drain(self, fd: int) -> None:
        """Read and drop what a guest who was turned away still sends; close it at its end."""
        guest = self.guests[fd]
        try:
            seen = len(guest.socket.recv(_READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            seen = 0
        guest.drained_bytes += seen
        if not seen or guest.drained_bytes > _DRAIN_LIMIT_BYTES:
            self.take(fd).socket.close()

    def drop_oldest(self) -> bool:
        """Close the one that came first; False if there is none."""
        for fd in self.guests:
            self.take(fd).socket.close()
            return True
        return False

    def expire(self, now: float) -> list[object]:
        """Close those whose time is over; gives their addresses."""
        expired = []
        while (first := self.next_deadline()) is not None and first <= now:
            expired.append(next(iter(self.guests.values())).address)
            self.drop_oldest()
        return expired

    def next_deadline(self) -> float | None:
        """When the first of them must go."""
        for guest in self.guests.values():
            return guest.deadline
        return None

    def let_go(self) -> None:
        """Close every descriptor, as a child does with what it inherited."""
        for guest in self.guests.values():
            guest.socket.close()

    def clear(self) -> None:
        """Close them all and forget them."""
        while self.drop_oldest():
            pass
