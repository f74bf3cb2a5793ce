"""What the tests of the CA share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.legacy import LegacyDeployment

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> LegacyDeployment:
    """One older deployment with RSA-4096, which takes a second or two to make."""
    directory: Path = tmp_path_factory.mktemp("legacy")
    return LegacyDeployment(directory)
