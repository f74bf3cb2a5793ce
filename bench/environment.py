"""On what the figures were taken: processor, kernel, Python, OpenSSL, load, versions of the baselines."""

from __future__ import annotations

import os
import platform
import ssl
import time
from typing import Any


def describe(python: str, python_version: str) -> dict[str, Any]:
    """The machine and the moment, as results.json holds them."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": round(int(_first("/proc/meminfo", "MemTotal").split()[0] or 0) / 1024),
        "kernel": platform.release(),
        "system": _first("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "python": python_version,
        "python_program": python,
        "openssl": ssl.OPENSSL_VERSION,
        "load_before": load(),
    }


def load() -> list[float]:
    """The load averages of this moment."""
    return [round(each, 2) for each in os.getloadavg()]


def _first(path: str, label: str, separator: str = ":") -> str:
    try:
        with open(path) as table:
            for line in table:
                name, _, text = line.partition(separator)
                if name.strip() == label:
                    return text.strip()
    except OSError:
        pass
    return "0"
