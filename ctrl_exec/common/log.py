"""Log lines that no value can forge: `ACTION=run EXIT=0 REQID=…`, or the same fields as JSON.

A `Log` is made once in each `main` and passed down. It holds a target (syslog, the journal's
native datagram socket, or a stream), never a level filter: what is logged is chosen where it
happens.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from ctrl_exec.common.second import this_second

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

_BARE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@,+-"
_PRIORITIES = {"INFO": 6, "WARNING": 4, "ERR": 3}
_FACILITY_DAEMON = 3 << 3
_STDERR_FD = 2
_VALUE_LIMIT = 1024
_LINE_LIMIT = 8000  # syslog daemons cut at 8 KiB; a cut quote would be a forged line
SYSLOG_SOCKET = "/dev/log"
JOURNAL_SOCKET = "/run/systemd/journal/socket"


def format_fields(action: str, found: dict[str, Any]) -> str:
    """`ACTION=` first, the other keys upper case and sorted, values quoted where they must be."""
    line = f"ACTION={_shown(action)}"
    for key in sorted(found):
        given = found[key]
        if given is not None:
            line += f" {key.upper()}={_shown(given)}"
    return line


def _shown(given: Any) -> str:
    text = given if given.__class__ is str and len(given) <= _VALUE_LIMIT else _text(given)
    if text and not text.strip(_BARE):
        return text
    return '"' + "".join(_escape(char) for char in text) + '"'


def _text(given: Any) -> str:
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, (list, tuple)):
        return ",".join(_text(part) for part in given)
    text = str(given)
    return text if len(text) <= _VALUE_LIMIT else text[: _VALUE_LIMIT - 3] + "..."


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char == "\n":
        return "\\n"
    if char.isprintable():
        return char
    # a byte that was no text came in as one of these; any other half of a pair is as JSON carried it
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", errors))


class Log:
    """Writes lines to one target.

    `target` is `syslog`, `journal` or `stderr`; `style` is `text` or `json`; `stream` replaces
    standard error in tests.
    """

    def __init__(
        self, program: str, target: str = "stderr", style: str = "text", *, stream: TextIO | None = None
    ) -> None:
        self.program = program
        self.target = target
        self.style = style
        self._stream = stream
        self._socket: _socket.socket | None = None

    def info(self, action: str, **found: Any) -> None:
        """Something happened as it should."""
        self.write("INFO", action, found)

    def warning(self, action: str, **found: Any) -> None:
        """Something an admin should look at."""
        self.write("WARNING", action, found)

    def error(self, action: str, **found: Any) -> None:
        """Something failed that must not."""
        self.write("ERR", action, found)

    def write(self, level: str, action: str, found: dict[str, Any]) -> None:
        """One line at the level; logging never fails its caller."""
        line = self._json(level, action, found) if self.style == "json" else format_fields(action, found)
        try:
            if self.target == "syslog":
                self._to_syslog(level, line)
                return
            if self.target == "journal":
                self._to_journal(level, line)
                return
        except OSError:  # no daemon listens there: better on standard error than nowhere
            pass
        try:
            self._to_stream(level, line)
        except (OSError, ValueError):  # nobody reads it
            return

    def _json(self, level: str, action: str, found: dict[str, Any]) -> str:
        import json

        shown = {"ACTION": action, "LEVEL": level, "TIME": round(time.time(), 3)}
        shown |= {key.upper(): found[key] for key in sorted(found) if found[key] is not None}
        return json.dumps(shown, default=str)

    def _to_stream(self, level: str, line: str) -> None:
        text = f"{line}\n" if self.style == "json" else f"{this_second().iso} {level} {line}\n"
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
        elif sys.stderr is not None:
            # not by its three layers: one write, so that lines of several processes stay whole
            os.write(_STDERR_FD, text.encode("utf-8", "backslashreplace"))

    def _to_syslog(self, level: str, line: str) -> None:
        priority = _FACILITY_DAEMON | _PRIORITIES[level]
        text = f"<{priority}>{self.program}[{os.getpid()}]: {line}"
        self._send(SYSLOG_SOCKET, text.encode("utf-8", "replace")[:_LINE_LIMIT])

    def _to_journal(self, level: str, line: str) -> None:
        text = f"PRIORITY={_PRIORITIES[level]}\nSYSLOG_IDENTIFIER={self.program}\nMESSAGE={line}\n"
        self._send(JOURNAL_SOCKET, text.encode("utf-8", "replace"))

    def _send(self, address: str, datagram: bytes) -> None:
        for _ in range(2):  # the daemon may have been restarted: one fresh connection, then give up
            if self._socket is None:
                self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
                self._socket.settimeout(0.5)
                try:
                    self._socket.connect(address)
                except OSError:
                    self.close()
                    raise
            try:
                self._socket.send(datagram)
                return
            except OSError:
                self.close()

    def close(self) -> None:
        """Give the connection to the log daemon back; the next line opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
