"""Schemathesis, which invents requests from the document, finds nothing in the live API."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet
from tests.support.processes import environment

# every script that the live document names ends at once: a request has ten seconds
SCRIPTS = {"hello": '#!/bin/sh\necho "hello $*"\n', "fail": "#!/bin/sh\nexit 3\n"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        agent = made.new_agent("web-01", scripts=SCRIPTS)
        made.enrol(agent)
        made.start_agent(agent)
        made.start_api()
        yield made
    finally:
        made.close()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", ["openapi.json", "openapi-live.json"])
def test_nothing_is_found(fleet: Fleet, tmp_path: Path, document: str) -> None:
    made = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{fleet.api_port}/{document}",
            "--max-examples", "15", "--no-color", "--seed", "1",
            # without a token they all answer 401, at length; test_schemathesis_tasks.py has one
            "--exclude-path-regex", "^/(api/v1|oauth|hooks)/",
        ],
        capture_output=True, text=True, timeout=880, check=False, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-6000:] + made.stderr[-1000:]
    assert fleet.api is not None
    assert "ACTION=crash" not in fleet.api.log()
