"""Words to the service manager: READY, RELOADING, STOPPING, WATCHDOG. Source: sd_notify(3).

Owns the one datagram socket for them. Without `NOTIFY_SOCKET` everything here is a no-op.
"""

from __future__ import annotations

import os
import socket
import time

from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class ServiceNotify:
    """Tells the service manager what state the service is in."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_period_s(environment)

    def ready(self) -> None:
        """The service is up, or a reload is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service is on its way down."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The service is alive; due every `watchdog_s` seconds when that is set."""
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
        ):
            channel.setblocking(False)
            channel.sendto(state.encode(), address)


def _watchdog_period_s(environment: Mapping[str, str]) -> float | None:
    """Half of what the manager allows, None if it asks for nothing of this process."""
    period = environment.get("WATCHDOG_USEC", "")
    for_pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not period.isascii() or not period.isdigit() or for_pid != str(os.getpid()):
        return None
    return max(0.1, int(period) / 2_000_000)
