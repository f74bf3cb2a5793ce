"""A local command as a value: what is to be executed, and how it ended.

Owns where programs are looked for. Starts nothing: who only has commands executed loads no more than this.
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import ProgramError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = "/bin/bash"


@value
class CommandOrder:
    """What to execute: argv with a program of PATH or an absolute one, its environment, its time."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    timeout_s: float | None = None


@value
class CommandEnd:
    """How it ended: `exit_code` is -1 when `signal` ended it. `timed_out` and `was_ended` say why.

    `is_gone` is false where something of it outlived KILL, or is not ours to end.
    """

    exit_code: int
    signal: int = 0
    timed_out: bool = False
    was_ended: bool = False
    is_gone: bool = True


def find_program(name: str, path: str = PATH) -> str:
    """The absolute path of a program. Raises: ProgramError if it is not to be found."""
    if "/" in name:
        if not name.startswith("/"):
            raise ProgramError("expected an absolute path, or a name to be found in PATH", program=name)
        return name
    for directory in path.split(":"):
        found = f"{directory}/{name}"
        if os.path.isfile(found) and os.access(found, os.X_OK):
            return found
    raise ProgramError(f"is not to be found in {path}", program=name)
