"""Names to addresses without ever stalling the loop that needs them.

IP literals are taken as they are. Other names are resolved by forked children, for `getaddrinfo`
has no deadline of its own and no form that does not block: a child that is late is killed and
replaced. It must not know what the addresses are for.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed knows `signal` only
import _socket
import os

from ctrl_exec.common import process
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator

    Addresses = tuple[tuple[int, str], ...]  # (address family, numeric address)
    Outcome = tuple[str, Addresses, str]  # (name, addresses, what went wrong)
else:
    from _collections import deque  # `collections` costs a command 2 ms

_MAX_CHILDREN = 16  # a slow server is asked this many names at once; each child costs a page table
_MAX_ADDRESSES = 4  # a name with more is tried on its first ones only
_REPLY_LIMIT_BYTES = 4096
_KNOWN_FOR_S = 30.0  # so that a loop that never rests hears of a host that moved


def literal(host: str) -> Addresses:
    """The address that the text itself is, or nothing."""
    for family in (_socket.AF_INET, _socket.AF_INET6):
        with suppress(OSError, ValueError):
            _socket.inet_pton(family, host)
            return ((family, host),)
    return ()


class _Child:
    """One resolving process and the name it is busy with."""

    __slots__ = ("deadline", "name", "pid", "socket")

    def __init__(self, timeout_s: float, resolve: Callable[[str], bytes]) -> None:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.socket = ours
        self.name = ""
        self.deadline = 0.0
        try:
            self.pid = process.fork_child(lambda: _answer_names(theirs, timeout_s, resolve))
        finally:
            theirs.close()
        ours.setblocking(False)

    def end(self) -> None:
        """Kill and reap; it keeps nothing worth a farewell."""
        self.socket.close()
        with suppress(OSError):
            os.kill(self.pid, _signal.SIGKILL)
        with suppress(OSError):
            os.waitpid(self.pid, 0)


class Resolver:
    """Resolves names, each once in half a minute.

    `watch(fd)` is called for each descriptor the owner must poll, `unwatch(fd)` before it closes;
    readable ones are handed to `receive`. `resolve` runs in a child and replaces the system's resolver
    in tests.
    """

    def __init__(
        self,
        timeout_s: float,
        watch: Callable[[int], None],
        unwatch: Callable[[int], None],
        resolve: Callable[[str], bytes] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._resolve = resolve or ask_system
        self._watch = watch
        self._unwatch = unwatch
        self._known: dict[str, tuple[Addresses, str]] = {}
        self._asked: set[str] = set()
        self._known_since = 0.0
        self._waiting: deque[str] = deque()
        self._children: dict[int, _Child] = {}
        self._last_progress = 0.0

    def lookup(self, host: str, now: float) -> tuple[Addresses, str] | None:
        """The addresses and what went wrong, or None while a child is being asked."""
        if self._known and not self.is_busy and now - self._known_since >= _KNOWN_FOR_S:
            self._forget()
        found = self._known.get(host)
        if found is not None:
            return found
        addresses = literal(host)
        if addresses:
            return addresses, ""
        if host not in self._asked:
            if not self.is_busy:
                self._last_progress = now
            self._asked.add(host)
            self._waiting.append(host)
            self._hand_out(now)
        return None

    @property
    def is_busy(self) -> bool:
        """Whether names are still to come."""
        return len(self._asked) > len(self._known)

    def owns(self, fd: int) -> bool:
        """Whether the descriptor belongs to a child of this resolver."""
        return fd in self._children

    def receive(self, fd: int, now: float) -> Iterator[Outcome]:
        """Take one child's answer."""
        child = self._children[fd]
        try:
            reply = child.socket.recv(_REPLY_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            reply = b""
        name, child.name = child.name, ""
        self._last_progress = now
        addresses, reason = _decode(reply) if reply else ((), "the resolver process died")
        if not reply:
            self._drop(fd)
        if name:
            yield self._settle(name, addresses, reason)
        self._hand_out(now)

    def expire(self, now: float) -> Iterator[Outcome]:
        """Give up on names whose time is over, and on all of them when nothing answers at all."""
        reason = f"name resolution timeout after {self._timeout_s:g}s"
        for fd, child in list(self._children.items()):
            if child.name and child.deadline <= now:
                name = child.name
                self._drop(fd)
                yield self._settle(name, (), reason)
        if self._waiting and self._last_progress + self._timeout_s <= now:
            for name in tuple(self._waiting):
                yield self._settle(name, (), reason)
            self._waiting.clear()
        self._hand_out(now)

    def next_deadline(self) -> float | None:
        """When `expire` is due."""
        moments = [child.deadline for child in self._children.values() if child.name]
        if self._waiting:
            moments.append(self._last_progress + self._timeout_s)
        return min(moments, default=None)

    def rest(self) -> None:
        """Nothing is asked now: forget what is known and end the children, until the next name."""
        if not self.is_busy:
            self._forget()
            self.close()

    def _forget(self) -> None:
        self._known.clear()
        self._asked.clear()

    def close(self) -> None:
        """End all children."""
        for fd in tuple(self._children):
            self._drop(fd)

    def _settle(self, name: str, addresses: Addresses, reason: str) -> Outcome:
        if not self._known:
            self._known_since = self._last_progress
        self._known[name] = (addresses, reason)
        return name, addresses, reason

    def _drop(self, fd: int) -> None:
        self._unwatch(fd)
        self._children.pop(fd).end()

    def _hand_out(self, now: float) -> None:
        while self._waiting:
            child = self._idle_child()
            if child is None:
                return
            child.name = self._waiting.popleft()
            child.deadline = now + self._timeout_s
            with suppress(OSError):  # a child that died in between shows as end of file
                child.socket.send(child.name.encode("utf-8", "replace")[:1024])

    def _idle_child(self) -> _Child | None:
        for child in self._children.values():
            if not child.name:
                return child
        if len(self._children) >= _MAX_CHILDREN:
            return None
        try:
            child = _Child(self._timeout_s, self._resolve)
        except OSError:  # no room for a process now; the names wait for those there are
            return None
        self._children[child.socket.fileno()] = child
        self._watch(child.socket.fileno())
        return child


def _answer_names(channel: _socket.socket, timeout_s: float, resolve: Callable[[str], bytes]) -> None:
    """The child: a name in, its addresses out, until the other end closes."""
    own = channel.fileno()
    os.closerange(3, own)  # inherited ends of other pipes would keep their readers waiting
    os.closerange(own + 1, 1 << 20)
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    while True:
        name = channel.recv(1024).decode()
        if not name:
            return
        _signal.alarm(int(timeout_s) + 2)  # should the owner be killed while we wait for a server
        channel.send(resolve(name))
        _signal.alarm(0)


def ask_system(name: str) -> bytes:
    """`<family> <address>` a line as the system resolves it, or `!` and what went wrong."""
    try:
        found = _socket.getaddrinfo(name, None, type=_socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a host name"
        return b"!" + reason.encode()
    # dict.fromkeys: each address once, in the order the system prefers
    pairs = dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in found)
    return "\n".join(f"{family} {address}" for family, address in pairs).encode()[:_REPLY_LIMIT_BYTES]


def _decode(reply: bytes) -> tuple[Addresses, str]:
    if reply.startswith(b"!"):
        return (), f"name resolution: {reply[1:].decode().lower()}"
    lines = [line.split(" ", 1) for line in reply.decode().splitlines()[:_MAX_ADDRESSES]]
    return tuple((int(family), address) for family, address in lines), ""
