"""Programs that run while something is measured against them.

Owns their start, the wait until they say where they listen, and their end. Must not know what they are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.polling import eventually


class Daemon:
    """A program with a session of its own; stderr, and stdout unless it announces itself, go to a file."""

    def __init__(
        self, argv: Sequence[str], log_path: Path, *, announces: bool = False,
        env: Mapping[str, str] | None = None, directory: Path | None = None,
    ) -> None:  # fmt: skip
        self.log_path = log_path
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE if announces else log, stderr=log,
                start_new_session=True, env=None if env is None else dict(env), cwd=directory,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The pid of the parent."""
        return self._process.pid

    def announcement(self) -> dict[str, Any]:
        """The line of JSON it prints when it serves."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended: {self.log()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def log(self) -> str:
        """What it has written to its log."""
        return self.log_path.read_text("utf-8", "replace")

    def port(self) -> int:
        """The port in the start line of a program of ours."""

        def probe() -> re.Match[str] | None:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._process.args!r} ended: {self.log()[-2000:]}")
            return re.search(r"ACTION=(?:api-)?start\b.*?ADDRESS=\S*?:(\d+)(?:[\s,]|$)", self.log())

        found = eventually(probe, what="the start line")
        assert found is not None
        return int(found[1])

    def stop(self) -> None:
        """End it and all it left in its session."""
        with suppress(OSError):
            self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
