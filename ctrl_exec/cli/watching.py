"""How a run looks while it goes on: its output line by line, and what each host has come to.

Owns the text of a run that is watched: whole lines of one host each, behind its name where there are several,
and the last word on every host. Must not know how the events came.
"""

from __future__ import annotations

import time

from ctrl_exec.cli.output import YELLOW, printable
from ctrl_exec.cli.results import harmless, show_gathered, show_result, summary
from ctrl_exec.common.messages import HostResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TextIO

    from ctrl_exec.cli.output import Output
    from ctrl_exec.cli.progress import Progress

# a script that never ends its line is shown all the same
LINE_LIMIT_CHARS = 1 << 16


class Watcher:
    """Takes the events of one run; `shows_output` prints the hosts' lines as they come."""

    def __init__(self, output: Output, *, shows_output: bool) -> None:
        self._output = output
        self._shows_output = shows_output and not output.is_json
        self._partial: dict[tuple[str, str], str] = {}
        self._remarked: set[str] = set()
        self._width = 0
        self.hosts: tuple[str, ...] = ()
        self.results: dict[str, HostResult] = {}
        self.state = ""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return bool(self.state)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event and show what there is to show."""
        kind, host = str(event.get("event")), str(event.get("host", ""))
        if kind == "start":
            if not host:
                self._start(event)
        elif kind in ("stdout", "stderr"):
            self._say(host, kind, str(event.get("text", "")))
        elif kind == "exit":
            self._finish(host)
            self.results[host] = HostResult.from_json(event)
            self._remark(host, self.results[host].note)
        elif kind == "batch":
            self._output.message(f"batch {event.get('batch')}: {_listed(event.get('hosts') or ())}")
        elif kind == "end":
            self.state = str(event.get("state"))

    def _start(self, event: Mapping[str, Any]) -> None:
        self.hosts = tuple(str(host) for host in event.get("hosts") or ())
        self._width = max(map(len, self.hosts), default=0) if len(self.hosts) > 1 else 0
        for host, note in dict(event.get("notes") or {}).items():
            self._remark(str(host), str(note))

    def _remark(self, host: str, note: str) -> None:
        """Say once of a host why its output does not come while its script runs."""
        if self._shows_output and note and host not in self._remarked:
            self._remarked.add(host)
            self._output.message(f"{printable(host)}: {printable(note)}")

    def _say(self, host: str, stream: str, text: str) -> None:
        if not self._shows_output:
            return
        *whole, rest = (self._partial.pop((host, stream), "") + text).split("\n")
        if len(rest) > LINE_LIMIT_CHARS:
            whole, rest = [*whole, rest], ""
        if rest:
            self._partial[host, stream] = rest
        if whole:
            self._print(host, stream, whole)

    def _print(self, host: str, stream: str, lines: Sequence[str]) -> None:
        where = self._output.stdout if stream == "stdout" else self._output.stderr
        prefix = self._prefix(host, stream, where)
        shown = [harmless(line) if where.isatty() else line for line in lines]
        # one write for all, so that nothing of another process gets between the parts of a line
        where.write("".join(f"{prefix}{line}\n" for line in shown))
        where.flush()

    def _prefix(self, host: str, stream: str, where: TextIO) -> str:
        if not self._width:
            return ""
        name = f"{printable(host)}:".ljust(self._width + 2)
        return self._output.coloured(name, YELLOW if stream == "stderr" else "36", where)

    def _finish(self, host: str) -> None:
        for stream in ("stdout", "stderr"):
            rest = self._partial.pop((host, stream), "")
            if rest:
                self._print(host, stream, [rest])

    def close(self) -> None:
        """Show what was said without the end of its line."""
        for host, stream in list(self._partial):
            self._print(host, stream, [self._partial.pop((host, stream))])

    def show_verdicts(self) -> None:
        """Show how it ended on the hosts: those alike under one header; a single good one needs no word."""
        found = [self.results[host] for host in self.hosts if host in self.results]
        if len(self.hosts) > 1:
            show_gathered(self._output, found)
            self._output.message(summary(found))
        elif found and (found[0].state, found[0].exit) != ("ok", 0):
            show_result(self._output, found[0])


def _listed(hosts: Sequence[object]) -> str:
    from ctrl_exec.cli.results import folded

    return folded(str(host) for host in hosts)


def show_event(progress: Progress, event: Mapping[str, Any]) -> None:
    """Have the live table show what an event says."""
    kind, host = str(event.get("event")), str(event.get("host", ""))
    if kind == "start" and host:
        progress.note(host, "running", "")
    elif kind == "start":
        progress.set_hosts([str(each) for each in event.get("hosts") or ()])
    elif kind in ("stdout", "stderr"):
        # of the last line as much as a row can hold
        lines = str(event.get("text", ""))[-400:].split("\n")
        progress.note(host, "running", printable(next((line for line in reversed(lines) if line), "")))
    elif kind == "exit":
        progress.count(str(event.get("state")), host)


class Silence:
    """Notices that all hosts which are waited for have been silent for too long, as a plain run does."""

    def __init__(self, patience_s: float, on_silence: Callable[[], None]) -> None:
        self._patience_s = patience_s
        self._on_silence = on_silence
        self._heard: dict[str, float] = {}
        self._is_over = False

    def note(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        kind, now = event.get("event"), time.monotonic()
        if kind == "start" and not event.get("host"):
            self._heard = {str(host): now for host in event.get("hosts") or ()}
        elif kind == "exit":
            self._heard.pop(str(event.get("host")), None)
        elif kind in ("batch", "cancel"):
            self._heard = dict.fromkeys(self._heard, now)
        elif event.get("host"):
            self._heard[str(event["host"])] = now

    def check(self) -> None:
        """Tell it, once, if it is so."""
        if self._is_over or not self._heard:
            return
        if max(self._heard.values()) + self._patience_s < time.monotonic():
            self._is_over = True
            self._on_silence()

    def explained(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Give the results with the reason why some are not waited for."""
        reason = {"error": f"read timeout after {self._patience_s:g}s"} if self._is_over else {}
        waiting = set(self._heard)
        return [(reason if each["host"] in waiting else {}) | dict(each) for each in results]
