"""The command line in a fork of the test process: hundreds of commands without as many interpreter starts."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

from ctrl_exec.cli.main import run
from ctrl_exec.common.process import fork_child, wait_status
from tests.support.processes import environment


def forked_cli(directory: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """What `ctrl-exec` with these words gives; the directory takes its output meanwhile."""
    given = [str(word) for word in words]
    paths = [directory / "forked-stdout", directory / "forked-stderr"]

    def work() -> int:
        with paths[0].open("w") as stdout, paths[1].open("w") as stderr:
            return run(given, environment(), io.StringIO(), stdout, stderr)

    status = wait_status(fork_child(work), timeout_s=120)
    assert status is not None, f"{given} does not end"
    assert status[1] == 0, f"{given} ended by signal {status[1]}"
    stdout, stderr = (path.read_text() for path in paths)
    return subprocess.CompletedProcess(given, status[0], stdout, stderr)
