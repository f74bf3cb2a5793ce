"""The forking mix-in of the standard library, without what it drags along."""

from __future__ import annotations

import socketserver
import subprocess
import sys

import pytest

from ctrl_exec.common.http import ForkingServer


def _run(program: str) -> str:
    """What a fresh interpreter prints for the program."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_server_is_the_standard_librarys_forking_mix_in() -> None:
    """It is the class itself, not a copy."""
    assert issubclass(ForkingServer, socketserver.ForkingMixIn)
    assert issubclass(ForkingServer, socketserver.BaseServer)


@pytest.mark.parametrize(
    "program",
    ["ctrl_exec.common.http", "ctrl_exec.api.main", "ctrl_exec.pairing.main", "ctrl_exec_agent.server"],
)
def test_a_server_does_not_load_threading(program: str) -> None:
    """Its hook after each fork would cost every child more than the fork itself."""
    assert _run(f"import sys, {program}; print('threading' in sys.modules)") == "False"


def test_whoever_needs_threads_still_has_them() -> None:
    """Servers with threads work as ever, and `threading` is the real one."""
    program = (
        "import ctrl_exec.common.http, socketserver\n"
        "server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), socketserver.BaseRequestHandler)\n"
        "server.server_close()\n"
        "import threading, sys\n"
        "print(threading is sys.modules['threading'], threading.current_thread().name)"
    )
    assert _run(program) == "True MainThread"


def test_threading_that_was_there_before_is_left_alone() -> None:
    """The stand-in is for those who have not loaded it yet."""
    program = (
        "import threading, ctrl_exec.common.http, socketserver; print(socketserver.threading is threading)"
    )
    assert _run(program) == "True"
