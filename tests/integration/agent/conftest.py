"""One CA for all tests of a worker; an agent of its own for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import AgentHost
from tests.support.pki import TestCA


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestCA:
    """A CA that every agent here trusts."""
    return TestCA(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def host(tmp_path: Path, ca: TestCA) -> Iterator[AgentHost]:
    """An agent that is configured but not started; ended with the test."""
    made = AgentHost(tmp_path, ca)
    yield made
    made.__exit__()


@pytest.fixture
def agent(host: AgentHost) -> AgentHost:
    """An agent that serves."""
    return host.start()
