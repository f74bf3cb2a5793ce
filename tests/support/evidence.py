"""What is shown of a failed test: the logs of the programs that worked for it, and the machine's state."""

from __future__ import annotations

import os
from pathlib import Path

LIMIT_BYTES = 6000
_logs: dict[Path, str] = {}


def note_log(path: Path, program: str) -> None:
    """Show the end of this log with every failure of a test during which it grew."""
    _logs[path] = program


def sections(since: float) -> list[tuple[str, str]]:
    """(title, text) for a report: each log that was written to since then (epoch), and the load."""
    found = [("machine", _machine())]
    for path, program in list(_logs.items()):
        try:
            if path.stat().st_mtime < since - 1:
                continue
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - LIMIT_BYTES))
                found.append((f"{program}: {path}", log.read().decode("utf-8", "replace")))
        except FileNotFoundError:
            # the test's directory is gone, and with it what could be shown
            del _logs[path]
    return found


def _machine() -> str:
    memory = [
        line for line in _read("/proc/meminfo").splitlines() if line.startswith(("MemAvail", "SwapFree"))
    ]
    processes = sum(name.isdigit() for name in os.listdir("/proc"))
    load = _read("/proc/loadavg").strip()
    return f"cores {os.cpu_count()}, load {load}, {processes} processes, {', '.join(memory)}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
