"""How often one address may knock at the pairing port: a window, then a block.

Owns the counting, in the memory of the process that accepts. Loopback is exempt: tests, the demo
and a person at the dispatcher's own prompt come from there.
"""

from __future__ import annotations

import ipaddress
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_ADDRESSES = 10_000


class PairingRate:
    """Admits `count` connections of an address within `window_s`; one more blocks it for `block_s`."""

    def __init__(
        self, limit: tuple[int, int, int], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._count, self._window_s, self._block_s = limit
        self._monotonic = monotonic
        # address → (start of its window, connections in it, blocked until), oldest first
        self._seen: dict[str, tuple[float, int, float]] = {}

    def admit(self, remote_ip: str) -> bool:
        """Whether a connection from there may come in now."""
        if _is_loopback(remote_ip):
            return True
        now = self._monotonic()
        started, count, blocked_until = self._seen.pop(remote_ip, (now, 0, 0.0))
        if blocked_until <= now and now - started >= self._window_s:
            started, count = now, 0
        count += 1
        if blocked_until <= now and count > self._count:
            blocked_until = now + self._block_s
        self._seen[remote_ip] = (started, count, blocked_until)
        if len(self._seen) > _MOST_ADDRESSES:
            del self._seen[next(iter(self._seen))]
        return blocked_until <= now


def _is_loopback(remote_ip: str) -> bool:
    try:
        return ipaddress.ip_address(remote_ip).is_loopback
    except ValueError:
        return False
