"""The border of the program: what is caught there, what the user sees of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ctrl_exec.cli.main import MODULES, load_command, run
from tests.support.pki import TestCA


class Raising(io.StringIO):
    """A standard input whose reading fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # the stub of StringIO has another name
        """Fail."""
        raise self._error


class Full(io.StringIO):
    """A standard output nobody reads."""

    def write(self, text: str, /) -> int:
        """Fail."""
        raise BrokenPipeError


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A dispatcher without agents."""
    identity = TestCA(tmp_path).dispatcher()
    path = tmp_path / "c.conf"
    path.write_text(
        f"etc_dir = {tmp_path}\nstate_dir = {tmp_path}\ncert = {identity.pem}\nkey = {identity.pem}\nlog_target = stderr\n"
    )
    return path


def called(conf: Path, stdin: io.StringIO, *words: str) -> tuple[int, str, str]:
    stdout, stderr = io.StringIO(), io.StringIO()
    line = ["--config", str(conf), "ping", "web-01", "--token-file", "-", *words]
    code = run(line, {}, stdin, stdout, stderr)
    return code, stdout.getvalue(), stderr.getvalue()


def test_an_interrupt_is_exit_130(conf: Path) -> None:
    """As a document too, never a traceback."""
    assert called(conf, Raising(KeyboardInterrupt())) == (130, "", "ctrl-exec: interrupted\n")
    code, stdout, stderr = called(conf, Raising(KeyboardInterrupt()), "--json")
    assert (code, stderr) == (130, "")
    assert json.loads(stdout) == {"ok": False, "error": "interrupted", "detail": "interrupted"}


def test_a_fault_of_ours_is_said_in_one_line(conf: Path) -> None:
    """The traceback is for -v."""
    code, stdout, stderr = called(conf, Raising(RuntimeError("boom")))
    assert (code, stdout, stderr) == (
        1,
        "",
        "ctrl-exec: internal error: RuntimeError: boom (-v shows where)\n",
    )
    code, stdout, stderr = called(conf, Raising(RuntimeError("boom")), "-v")
    assert "Traceback" in stderr
    code, stdout, stderr = called(conf, Raising(RuntimeError("boom")), "--json")
    assert json.loads(stdout)["error"] == "server error"
    code, stdout, stderr = called(conf, Raising(ModuleNotFoundError("x", name="cryptography")))
    assert "no Python package cryptography: run `make install`" in stderr
    code, stdout, stderr = called(conf, Raising(ModuleNotFoundError("x", name="ctrl_exec.nothing")))
    assert "internal error" in stderr


def test_a_reader_that_has_gone_is_no_fault(conf: Path) -> None:
    """Nothing can be told to anybody."""
    assert run(["--config", str(conf), "help"], {}, io.StringIO(), Full(), io.StringIO()) == 1


def test_a_token_on_standard_input(conf: Path) -> None:
    """`--token-file -` reads one line and no more."""
    stdin = io.StringIO("secret\nnext\n")
    code, _, stderr = called(conf, stdin)
    assert code == 1
    assert "web-01: no agent is paired yet; `ctrl-exec pairing-mode` lets them ask" in stderr
    assert stdin.read() == "next\n"


@pytest.mark.parametrize("name", MODULES)
def test_every_command_describes_itself(name: str) -> None:
    """A summary that fits a line, lower case, no full stop; meanings for all it takes; known exit codes."""
    from ctrl_exec.cli.help import EXIT_CODES

    command = load_command(name)
    assert command.summary
    assert len(command.summary) <= 80
    assert command.summary[-1] != "."
    assert command.summary[0] == command.summary[0].lower()
    assert all(each.doc for each in (*command.options, *command.arguments))
    assert set(command.exit_codes) <= set(EXIT_CODES)
    assert all(example.startswith(("ctrl-exec ", "source ")) for example in command.examples)
