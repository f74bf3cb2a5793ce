"""What a caller that no hook lets in can find out and can make the API do."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet

HOOK = "#!/bin/sh\nexit 1\n"
RECORD = '{"hostname": "web-01", "ip": "127.0.0.9", "port": 7443}'
MOST_MEMORY_KIB = 600 * 1024


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Fleet]:
    """An API whose hook denies everything; web-01 is registered."""
    hook = tmp_path / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    fleet = Fleet(tmp_path, {"auth_hook": hook, "api_auth_default": None, "auth_hook_large": "stdin"})
    (fleet.state / "agents" / "web-01.json").write_text(RECORD)
    try:
        fleet.start_api()
        yield fleet
    finally:
        fleet.close()


def test_a_stranger_cannot_tell_a_registered_name_from_another(closed: Fleet) -> None:
    """What is wrong with the hosts named does not depend on whether they are registered."""
    statuses = {
        name: closed.http("POST", "/ping", {"hosts": [f"{name}:1000", f"{name}:1001"]}).status
        for name in ("web-01", "web-02")
    }
    assert len(set(statuses.values())) == 1, statuses


@pytest.mark.parametrize(
    "host", ["a[1-999999999]x{:05d}", "!a[1-999999999]x{:05d}", "n{:08d}", "@all", "@role={:07d}"]
)
def test_a_stranger_cannot_keep_a_child_busy_with_patterns(closed: Fleet, host: str) -> None:
    """A megabyte of patterns means bounded work before the hook says no: its patience is the test's."""
    hosts = ["web-01"]
    while len(json.dumps(hosts)) < 900_000:
        hosts += [host.format(len(hosts) + each) for each in range(1000)]
    # the largest of all children that this process ever had: other tests have had large ones
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert closed.http("POST", "/ping", {"hosts": hosts}, timeout_s=60).status == 403
    assert closed.api is not None
    closed.api.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_maxrss <= max(before, MOST_MEMORY_KIB)
