"""Fixtures of the integration tests: one paired fleet a test process, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import SCRIPTS, Fleet

GATE = '#!/bin/sh\necho started\nwhile [ ! -e "$1" ]; do sleep 0.05; done\necho finished\n'


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """host-a and host-b paired and serving, the API up; `gate FILE` runs until the file is there."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        agents = [made.new_agent(name, scripts=SCRIPTS | {"gate": GATE}) for name in ("host-a", "host-b")]
        made.pair(*agents)
        for agent in agents:
            made.start_agent(agent)
        made.start_api()
        yield made
    finally:
        made.close()


@pytest.fixture
def own_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet for a test that breaks things: host-a paired and serving, the API not yet started."""
    made = Fleet(tmp_path / "own")
    try:
        made.add("host-a", scripts=SCRIPTS | {"gate": GATE})
        yield made
    finally:
        made.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """The file a `gate` script waits for; it is made at the end whatever happened."""
    path = tmp_path / "gate-open"
    yield path
    path.touch()
