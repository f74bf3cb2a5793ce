"""What the scheduler and `ctrl-exec-local` say to each other, as values and as frames.

Owns the words of the protocol and what of them is refused. Knows neither sockets nor processes.

    run         {"ask": "run", "user", "argv", "environment", "timeout_s"}
                ← {"pid", "started"} and the pipes of stdout and stderr; nothing is executed yet
                → {"go": true}; {"end": true} at any time; hanging up means the same
                ← {"end": {…}}, or {"failure": "…"} where it could not be executed
    end group   {"ask": "end-group", "pid", "started"} ← {"gone": true | false}
    about       {"ask": "about"} ← {"user", "version"}
"""

from __future__ import annotations

import re

from ctrl_exec.common.errors import MessageError
from ctrl_exec.common.value import value
from ctrl_exec.local.order import PATH, CommandEnd, CommandOrder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

RUN, END_GROUP, ABOUT = "run", "end-group", "about"
# the environment is built up: a variable that is none of these is refused, LD_PRELOAD and its kind first
VARIABLE = re.compile(r"LANG|LC_ALL|TZ|CP[A-Z]_[A-Z0-9_]{1,64}", re.ASCII)
_END_KEYS = {"exit_code": int, "signal": int, "timed_out": bool, "was_ended": bool, "is_gone": bool}


@value
class LocalAccount:
    """Whom the service executes commands as."""

    name: str
    uid: int
    home: str
    shell: str

    def environment(self) -> dict[str, str]:
        """What every command of this account has in its environment."""
        return {
            "PATH": PATH, "HOME": self.home, "SHELL": self.shell, "USER": self.name, "LOGNAME": self.name,
        }  # fmt: skip


def run_message(order: CommandOrder, user: str) -> dict[str, Any]:
    """The request to execute it as that user."""
    return {
        "ask": RUN, "user": user, "argv": list(order.argv), "environment": dict(order.environment),
        "timeout_s": order.timeout_s,
    }  # fmt: skip


def read_run(message: Mapping[str, Any], account: LocalAccount) -> CommandOrder:
    """The order that was sent. Raises: MessageError, without what was in it: it may be secret."""
    argv, variables, timeout_s = (message.get(key) for key in ("argv", "environment", "timeout_s"))
    if not (isinstance(argv, list) and argv and all(isinstance(each, str) for each in argv)):
        raise MessageError("argv: expected words")
    if not isinstance(variables, dict):
        raise MessageError("environment: expected an object")
    for name, text in variables.items():
        if not VARIABLE.fullmatch(name) or not isinstance(text, str):
            raise MessageError(f"environment: {name[:80]!a} is not one that a command may get")
    if any("\0" in each for each in (*argv, *variables.values())):
        raise MessageError("a NUL byte can be in no argument and no variable")
    if timeout_s is not None and (isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float))):
        raise MessageError("timeout_s: expected a number")
    return CommandOrder(tuple(argv), account.environment() | variables, timeout_s)


def read_process(message: Mapping[str, Any]) -> tuple[int, int]:
    """(pid, started) of a message. Raises: MessageError."""
    pid, started = message.get("pid"), message.get("started")
    if type(pid) is not int or type(started) is not int or pid < 2 or started < 0:
        raise MessageError("expected the pid of a process and when it started")
    return pid, started


def end_message(end: CommandEnd) -> dict[str, Any]:
    """How a command ended."""
    return {"end": {key: getattr(end, key) for key in _END_KEYS}}


def read_end(message: Mapping[str, Any]) -> CommandEnd:
    """How it ended. Raises: MessageError."""
    found = message.get("end")
    if not isinstance(found, dict) or any(
        type(found.get(key)) is not kind for key, kind in _END_KEYS.items()
    ):
        raise MessageError("expected the end of a command")
    return CommandEnd(**{key: found[key] for key in _END_KEYS})
