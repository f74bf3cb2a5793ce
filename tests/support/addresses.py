"""Addresses of 127/8 for what listens on a fixed port: none is used twice by all that tests do at once."""

from __future__ import annotations

import itertools
import os
import socket

_numbers = itertools.count()


def own_ip() -> str:
    """An address that no other test process and no other call here uses."""
    number = (1 << 20) + os.getpid() % 15_000 * 1024 + next(_numbers) % 1024
    return f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def free_port(ip: str = "127.0.0.1") -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])
