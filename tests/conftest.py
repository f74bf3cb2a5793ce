"""What holds for every test: no example is judged by its speed, and a failure shows what the programs logged."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import evidence

settings.register_profile("ours", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

_BEGUN: pytest.StashKey[float] = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember when the test began."""
    item.stash[_BEGUN] = time.time()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed on a machine nobody can look at must tell what happened there."""
    report = yield
    if report.failed:
        report.sections += evidence.sections(item.stash.get(_BEGUN, 0.0))
    return report
