"""Addresses of a name, before a deadline: whoever asks is not held up by a resolver that hangs.

`getaddrinfo` waits as long as the system's configuration has it, and nothing interrupts it. So it is a
child that asks, and one that is late is killed. Must not know what the addresses are for.
"""

from __future__ import annotations

import select
import socket
from time import monotonic

from ctrl_exec.services.resolver import Resolver, literal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Addresses = tuple[tuple[int, str], ...]


def addresses_of(host: str, deadline: float, resolve: Callable[[str], bytes] | None = None) -> Addresses:
    """(family, numeric address) of a name, as the system prefers them; `resolve` stands for the system.

    Raises: OSError, in words, if it does not resolve until the deadline.
    """
    known = literal(host)
    if known:
        return known
    poller = select.poll()
    # its own time limit is the child's, should we be killed meanwhile
    timeout_s = max(1.0, deadline - monotonic())
    resolver = Resolver(timeout_s, lambda fd: poller.register(fd, select.POLLIN), poller.unregister, resolve)
    try:
        while (found := resolver.lookup(host, monotonic())) is None:
            left_s = deadline - monotonic()
            if left_s <= 0:
                raise socket.gaierror(socket.EAI_AGAIN, "its name is not resolved in time")
            for fd, _ in poller.poll(max(1, int(left_s * 1000))):
                list(resolver.receive(fd, monotonic()))
    finally:
        resolver.close()
    addresses, reason = found
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, reason or "its name has no address")
    return addresses
