"""One dispatcher with emulated agents for all tests of the command line in a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.cli.instance import Instance


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Good, failing, slow, silent and unreachable agents; tests only read or run on it."""
    made = Instance(tmp_path_factory.mktemp("cli"))
    fleet = made.fleet
    fleet.add("web-01", stdout="hello\n", tags={"role": "web", "env": "prod"})
    fleet.add("web-02", stdout="hello\n", tags={"role": "web"})
    fleet.add("bad-01", exit=3, stdout="out\n", stderr="wrong\nworse\n")
    fleet.add("liar", lie="reset late")
    fleet.add("gone", lie="reset")
    fleet.add("slow", delay_s=30)
    fleet.add("talker", lines=25, line_every_s=0.1)
    fleet.add("rude", stdout="\x1b]0;title\x07\x1b[31mred\x1b[0m\n")
    for number in range(1, 12):
        fleet.add(f"n{number:02d}", stdout="same\n")
    made.start()
    yield made
    made.close()
