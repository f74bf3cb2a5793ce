"""The auth hook against what the programs that ask it were started with."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.fleet import Fleet
from tests.support.polling import eventually

HOOK = '#!/bin/sh\nfor each in /proc/self/fd/*; do readlink $each; done >"$0.seen"\nexit 1\n'


@pytest.mark.parametrize("program", ["ctrl-exec", "ctrl-exec-api"])
def test_the_hook_inherits_no_descriptor_its_program_was_started_with(tmp_path: Path, program: str) -> None:
    """What a careless parent left open is not the hook's to read."""
    hook, seen = tmp_path / "hook", tmp_path / "hook.seen"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    (tmp_path / "secret-file").write_text("secret")
    fleet = Fleet(tmp_path, {"auth_hook": hook, "api_auth_default": None})
    words = ["ping", "nobody"] if program == "ctrl-exec" else []
    log_path = tmp_path / "log"
    with (tmp_path / "secret-file").open() as leaked, log_path.open("ab") as log:
        process = subprocess.Popen(
            processes.command(program, "--config", fleet.conf, *words),
            env=processes.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=[leaked.fileno()],
        )  # fmt: skip
    try:
        if program == "ctrl-exec-api":
            address = eventually(
                lambda: log_path.read_text().partition("ADDRESS=")[2].split()[:1], what="the API listens"
            )
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"http://{address[0]}/health", timeout=60)
        assert eventually(lambda: seen.exists() and seen.read_text(), what="the hook was asked")
        assert "secret-file" not in seen.read_text()
    finally:
        process.terminate()
        process.wait(60)
