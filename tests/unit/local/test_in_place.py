"""Local commands: real ones, with every way to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ctrl_exec.common.errors import ProgramError, StorageError
from ctrl_exec.common.process import is_group_alive
from ctrl_exec.local.in_place import run_command
from ctrl_exec.local.order import CommandEnd, CommandOrder, find_program
from tests.support.descriptors import open_descriptors
from tests.support.polling import eventually

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "CPP_NAME": "a b; c"}


class Heard:
    """What came of a command."""

    def __init__(self) -> None:
        self.output = {1: b"", 2: b""}
        self.pid = 0

    def run(
        self,
        line: str,
        *,
        timeout_s: float | None = 30,
        wants_end: Callable[[], bool] = lambda: False,
    ) -> CommandEnd:
        """Run a line of shell."""
        order = CommandOrder(("/bin/bash", "-c", line), ENVIRONMENT, timeout_s)

        def note(pid: int) -> None:
            self.pid = pid

        return run_command(order, on_output=self.hear, wants_end=wants_end, before_exec=note)

    def hear(self, stream: int, chunk: bytes) -> None:
        """Keep it."""
        self.output[stream] += chunk


def test_output_of_both_streams_and_the_code_come_through() -> None:
    """The environment is the order's and nothing else, standard input is empty."""
    heard = Heard()
    end = heard.run('echo "$CPP_NAME"; echo err >&2; cat; env | wc -l; exit 7')
    assert end == CommandEnd(7)
    assert heard.output[1].startswith(b"a b; c\n")
    assert int(heard.output[1].split()[-1]) <= 6  # bash adds PWD, SHLVL and _
    assert heard.output[2] == b"err\n"


def test_a_signal_is_told_from_a_code() -> None:
    """Death by a signal is no exit code."""
    assert Heard().run("kill -9 $$") == CommandEnd(-1, 9)


def test_at_its_time_the_whole_group_is_ended() -> None:
    """Also what ignores TERM."""
    heard = Heard()
    end = heard.run("trap '' TERM; echo begun; sleep 600 & sleep 600; sleep 600", timeout_s=0.5)
    assert (end.timed_out, end.signal) == (True, 9)
    assert heard.output[1] == b"begun\n"
    assert not is_group_alive(heard.pid)


def test_it_ends_when_it_is_wished_to() -> None:
    """TERM first: it may say goodbye."""
    heard = Heard()
    end = heard.run(
        "trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep 0.05; done",
        wants_end=lambda: heard.output[1] != b"",
    )
    assert end == CommandEnd(3, was_ended=True)
    assert heard.output[1] == b"begun\nbye\n"


def test_what_it_leaves_behind_is_ended_with_it() -> None:
    """A child in the background does not hold it open."""
    heard = Heard()
    assert heard.run("sleep 600 & echo done") == CommandEnd(0)
    assert heard.output[1] == b"done\n"
    assert not is_group_alive(heard.pid)


def test_all_of_a_large_output_arrives() -> None:
    """In both streams at once."""
    heard = Heard()
    assert heard.run("head -c 3000000 /dev/zero & head -c 2000000 /dev/zero >&2; wait") == CommandEnd(0)
    assert (len(heard.output[1]), len(heard.output[2])) == (3_000_000, 2_000_000)


def test_a_full_disk_of_the_caller_ends_the_command() -> None:
    """Nothing goes on that nobody can keep."""
    before = open_descriptors()
    seen: list[int] = []

    def refuse(_stream: int, _chunk: bytes) -> None:
        raise StorageError("disk full", path="log")

    with pytest.raises(StorageError):
        run_command(
            CommandOrder(("/bin/bash", "-c", "echo x; sleep 600"), ENVIRONMENT),
            on_output=refuse,
            wants_end=lambda: False,
            before_exec=seen.append,
        )
    eventually(lambda: not is_group_alive(seen[0]))
    assert open_descriptors() == before


def test_programs_are_found_as_a_shell_would(tmp_path: Path) -> None:
    """In a fixed PATH, never relative to anything."""
    assert find_program("true") in ("/usr/bin/true", "/bin/true")
    assert find_program("/opt/x") == "/opt/x"
    for name in ("no-such-program-here", "./x", "a/b"):
        with pytest.raises(ProgramError, match=r"PATH|/usr/bin"):
            find_program(name)
    (tmp_path / "not-executable").write_text("")
    with pytest.raises(ProgramError):
        find_program("not-executable", str(tmp_path))
