"""Per-address limits on connections that bring no trusted serial.

Owns the windows and blocks of all addresses, in the memory of the parent. Knows no socket: it is
told how each connection ended, and the time.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec_agent.config import RateLimit

EXEMPT_S = 24 * 3600  # an address a trusted serial came from is not limited for this long
_MAX_ADDRESSES = 10_000  # what a flood of addresses may cost in memory

TRUSTED = "trusted"  # a certificate whose serial is in the trust map
PROBE = "probe"  # a failed handshake, or a certificate nobody trusts here
SILENT = "silent"  # nothing that could be judged: connected and left


class RateLimits:
    """The windows of every address that came lately."""

    def __init__(self, volume: RateLimit, probe: RateLimit, *, is_disabled: bool = False) -> None:
        self._limits = (volume, probe)
        self._is_disabled = is_disabled
        self._seen: tuple[dict[str, deque[float]], ...] = ({}, {})
        self._blocked_until: dict[str, float] = {}
        self._trusted_until: dict[str, float] = {}

    def is_blocked(self, address: str, now: float) -> bool:
        """Whether a connection of that address is to be closed unheard."""
        if self._is_disabled:
            return False
        until = self._blocked_until.get(address, 0.0)
        if until and until <= now:
            del self._blocked_until[address]
        return until > now

    def note(self, address: str, outcome: str, now: float) -> str:
        """Take in how a connection ended; the name of the limit it broke (`volume`, `probe`), or ''."""
        if self._is_disabled:
            return ""
        if outcome == TRUSTED:
            self._trust(address, now)
            return ""
        if self._trusted_until.get(address, 0.0) > now:
            return ""
        broken = ""
        for name, seen, limit in zip(("volume", "probe"), self._seen, self._limits, strict=True):
            if (name == "volume" or outcome == PROBE) and self._count(seen, address, limit, now):
                self._block(address, now + limit.block_s, now)
                broken = name
        return broken

    def configure(self, volume: RateLimit, probe: RateLimit, *, is_disabled: bool) -> None:
        """Use other limits from now on; what was seen and blocked stays."""
        self._limits = (volume, probe)
        self._is_disabled = is_disabled

    def _trust(self, address: str, now: float) -> None:
        _make_room(self._trusted_until, now)
        self._trusted_until[address] = now + EXEMPT_S
        self._blocked_until.pop(address, None)
        for seen in self._seen:
            seen.pop(address, None)

    def _block(self, address: str, until: float, now: float) -> None:
        _make_room(self._blocked_until, now)
        self._blocked_until[address] = max(until, self._blocked_until.get(address, 0.0))

    @staticmethod
    def _count(seen: dict[str, deque[float]], address: str, limit: RateLimit, now: float) -> bool:
        times = seen.pop(address, None) or deque()
        while times and times[0] <= now - limit.window_s:
            times.popleft()
        times.append(now)
        if len(times) >= limit.count:
            return True
        if len(seen) >= _MAX_ADDRESSES:
            _drop_older_half(seen)
        seen[address] = times
        return False


def _make_room(until: dict[str, float], now: float) -> None:
    if len(until) < _MAX_ADDRESSES:
        return
    for address in [each for each, end in until.items() if end <= now]:
        del until[address]
    if len(until) >= _MAX_ADDRESSES:
        _drop_older_half(until)


def _drop_older_half(found: dict[str, Any]) -> None:
    """Forget those that were noted longest ago; many at once, so that a flood costs little for each."""
    for address in list(found)[: _MAX_ADDRESSES // 2]:
        del found[address]
