"""One office for all tests of the task layer's API; each test makes what it changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.office import Office


@pytest.fixture(scope="session")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    made = Office(tmp_path_factory.mktemp("office"))
    try:
        made.start_api()
        yield made
    finally:
        made.close()
