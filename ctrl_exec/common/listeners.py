"""Listening sockets: addresses, a Unix socket with mode and group, or what systemd handed over.

Owns how a server comes to listen and what it leaves behind. Accepts nothing itself.
"""

from __future__ import annotations

import _socket
import os
import socket
import stat

from ctrl_exec.common.errors import ConfigError, ServiceError
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_FIRST_INHERITED_FD = 3


class Listener(socket.socket):
    """A non-blocking listening socket."""

    plain_family: int = _socket.socket.family  # type: ignore[assignment]  # the number, not its enum
    path = ""  # of a Unix socket of ours: it was bound under another name

    def accept(self) -> tuple[socket.socket, Any]:
        """As in the base class, with sockets of the plain kind that are non-blocking as well.

        The base class makes every socket's family and type into enums; that costs a server some
        dozen pages for each connection.
        """
        fd, address = self._accept()  # type: ignore[attr-defined]  # as the base class calls it
        accepted: Any = _socket.socket(self.plain_family, _socket.SOCK_STREAM, 0, fd)
        accepted.setblocking(False)
        return accepted, address


class Listeners:
    """Every socket a server accepts on."""

    def __init__(self, sockets: list[Listener]) -> None:
        self.sockets = sockets
        self._named: list[tuple[str, tuple[int, int]]] = []

    def note_name(self, path: str) -> None:
        """Remember a Unix socket's name as ours, to be removed at the end."""
        about = os.lstat(path)
        self._named.append((path, (about.st_dev, about.st_ino)))

    def addresses(self) -> tuple[str, ...]:
        """Where the sockets listen, as `address_of` writes it."""
        return tuple(address_of(each) for each in self.sockets)

    def by_fd(self) -> dict[int, Listener]:
        """The sockets by their descriptors."""
        return {each.fileno(): each for each in self.sockets}

    def close(self) -> None:
        """Close them, as a child does with what it inherited."""
        for each in self.sockets:
            each.close()

    def retire(self) -> None:
        """Close them and remove the Unix socket's name, unless another server has taken it."""
        for path, identity in self._named:
            with suppress(OSError):
                about = os.lstat(path)
                if (about.st_dev, about.st_ino) == identity:
                    os.unlink(path)
        self.close()


def open_listeners(
    addresses: Iterable[tuple[str, int]],
    unix_socket: str,
    unix_group: str,
    backlog: int,
    environment: Mapping[str, str],
) -> Listeners:
    """Listen on all of them; sockets handed over by systemd stand in for those of their kind.

    Raises: ServiceError if an address cannot be had; ConfigError for an unknown group.
    """
    opened = Listeners(inherited(environment))
    has_unix = any(each.family == socket.AF_UNIX for each in opened.sockets)
    has_internet = any(each.family != socket.AF_UNIX for each in opened.sockets)
    try:
        if not has_internet:
            for host, port in addresses:
                opened.sockets.append(_listen_internet(host, port, backlog))
        if unix_socket and not has_unix:
            group = _group_id(unix_group) if unix_group else -1
            opened.sockets.append(listen_unix(unix_socket, backlog, 0o660, group=group))
            opened.note_name(unix_socket)
    except BaseException:
        opened.close()
        raise
    return opened


def inherited(environment: Mapping[str, str]) -> list[Listener]:
    """The listening sockets systemd passed to this very process. Source: sd_listen_fds(3)."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not count.isascii() or not count.isdigit():
        return []
    found = []
    for fd in range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + int(count)):
        os.set_inheritable(fd, False)
        listener = Listener(fileno=fd)
        listener.setblocking(False)
        found.append(listener)
    return found


def _listen_internet(host: str, port: int, backlog: int) -> Listener:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = Listener(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # accepted sockets inherit it: an answer is one write, waiting to fill a packet gains nothing
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ServiceError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def listen_unix(path: str, backlog: int, mode: int, *, owner: int = -1, group: int = -1) -> Listener:
    """Listen on a Unix socket of that mode and owner. Raises: ServiceError if the path can't be had."""
    _check_unused(path)
    listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    # bound under another name and renamed: nobody can connect before mode and group are right
    # (a short one: what the kernel allows is the length of the path)
    temporary = os.path.join(os.path.dirname(path), f".{os.getpid():x}")
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        listener.bind(temporary)
        if (owner, group) != (-1, -1):
            os.chown(temporary, owner, group)
        os.chmod(temporary, mode)
        listener.listen(backlog)
        os.rename(temporary, path)
        listener.path = path
    except OSError as error:
        listener.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise ServiceError(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def _check_unused(path: str) -> None:
    """Refuse to take the place of a server that lives, or of a file that is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ServiceError(f"cannot listen on {path}: a file that is no socket is in the way")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except OSError:
            pass
    raise ServiceError(f"cannot listen on {path}: another server is using it")


def _group_id(group: str) -> int:
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigError(f"there is no group {group!r} on this machine") from error


def address_of(listener: socket.socket) -> str:
    """`127.0.0.1:7445`, `[::1]:7445`, or the path of a Unix socket."""
    name = getattr(listener, "path", "") or listener.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    return str(name)
