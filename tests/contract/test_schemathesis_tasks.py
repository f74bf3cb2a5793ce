"""Schemathesis with a token, against the task layer: nothing undocumented, no fault of ours, no wrong type."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.office import Office, seed
from tests.support.processes import ROOT, environment

# much that fits the schemas is refused for what they cannot say: a name that is taken, a cron expression
# that is none, a version that is not the newest
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance"
)
# these go out to others, or stay open until an execution ends
LONG = "/(test|log)$"


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One of its own: whatever is invented may remove what it finds."""
    made = Office(tmp_path_factory.mktemp("invented"))
    try:
        made.start_api()
        yield made
    finally:
        made.close()


@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    ("paths", "who"),
    [("^/api/v1/", "admin"), ("^/(oauth|hooks)/", "")],
    ids=["administrator", "public"],
)
def test_nothing_is_found(office: Office, tmp_path: Path, paths: str, who: str) -> None:
    """What an administrator may send, and somebody without a token."""
    if who:
        assert office.ask("POST", "/api/v1/tasks", seed()[0]).status in (201, 409)
    made = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", str(ROOT / "openapi.json"),
            "--url", f"http://127.0.0.1:{office.api_port}", "--max-examples", "5", "--no-color", "--seed", "1",
            "--phases", "examples,fuzzing", "--checks", CHECKS, "--request-timeout", "60",
            "--include-path-regex", paths, "--exclude-path-regex", LONG,
            *(("-H", f"Authorization: Bearer {office.tokens[who]}") if who else ()),
        ],
        capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-8000:] + made.stderr[-1000:]
    assert office.api is not None
    assert "ACTION=crash" not in office.api.log()
