"""A clock of the machine that a test sets, for one program and all it starts: what `settimeofday` does to everybody.

The program is the real one; Python loads `sitecustomize` before it, which moves `time.time` by what a file says.
The clock that nobody sets (`time.monotonic`) stays, as it does in the kernel.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.processes import environment

_CUSTOM = """\
import os
import time

_time, _time_ns, _path = time.time, time.time_ns, os.environ["STEPPED_CLOCK"]


def _step_s():
    with open(_path) as file:
        return int(file.read())


time.time = lambda: _time() + _step_s()
time.time_ns = lambda: _time_ns() + _step_s() * 10**9
"""


class SteppedClock:
    """Its files are below a directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(_CUSTOM)
        self._path = directory / "step"
        self.set(0)
        path = environment()["PYTHONPATH"]
        self.environment = {"PYTHONPATH": f"{directory}:{path}", "STEPPED_CLOCK": str(self._path)}

    def set(self, step_s: int) -> None:
        """Have the clock be so many seconds ahead of the machine's, from now on."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(str(step_s))
        os.replace(fresh, self._path)
