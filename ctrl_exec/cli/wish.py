"""What a command line wants run: its words, as the daemon and the operation take them.

Owns the checks that need no dispatcher. Costs no imports but its own: the daemon does the rest.
"""

from __future__ import annotations

from ctrl_exec.common.errors import UsageError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.operations.rollout import Batch
    from ctrl_exec.operations.run import RunRequest

MAX_LOCK_WAIT_S = 3600


@value
class Wish:
    """What a command line wants run; `hosts` are patterns. A `RunRequest` that costs no imports."""

    hosts: tuple[str, ...]
    script: str
    args: tuple[str, ...] = ()
    timeout_s: int | None = None
    read_timeout_s: int | None = None
    lock_wait_s: int = 0
    encoding: str = "utf-8"
    is_async: bool = False
    agent_port: int | None = None
    batch: Mapping[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        """Give the body of `POST /run`, without the credentials."""
        optional = {
            "args": list(self.args) or None,
            "timeout": self.timeout_s,
            "read_timeout": self.read_timeout_s,
            "lock_wait": self.lock_wait_s or None,
            "encoding": None if self.encoding == "utf-8" else self.encoding,
            "async": self.is_async or None,
            "batch": self.batch,
        }
        wanted = {"hosts": list(self.hosts), "script": self.script}
        return wanted | {key: each for key, each in optional.items() if each is not None}

    def request(self) -> RunRequest:
        """Give the request of the operation."""
        from ctrl_exec.operations.run import RunRequest

        return RunRequest(
            hosts=self.hosts,
            script=self.script,
            args=self.args,
            timeout_s=self.timeout_s,
            read_timeout_s=self.read_timeout_s,
            lock_wait_s=self.lock_wait_s,
            encoding=self.encoding,
            is_async=self.is_async,
            agent_port=self.agent_port,
            batch=batch_here(self.batch),
        )


def batch_here(wanted: Mapping[str, Any] | None) -> Batch | None:
    """Give the batches as the operation takes them."""
    if wanted is None:
        return None
    from ctrl_exec.operations.rollout import Batch

    return Batch(wanted["size"], wanted["max_failures"], pause_s=wanted["pause"], canary=wanted["canary"])


def run_wish(arguments: Arguments, patterns: tuple[str, ...]) -> Wish:
    """Build the request from the words of `run`.

    Raises:
        UsageError: the script or the hosts are missing, an option has a bad value.
    """
    if arguments.flag("follow") and (arguments.flag("async") or arguments.text("encoding") == "base64"):
        raise UsageError("--follow shows text as it comes: it goes neither with --async nor with base64")
    if not patterns:
        raise UsageError("missing HOST: name the hosts before the script, or give --all or -t TAG=VALUE")
    return Wish(
        hosts=patterns,
        script=arguments.words[-1],
        args=arguments.rest,
        timeout_s=whole_seconds(arguments, "timeout", 7 * 86400),
        read_timeout_s=whole_seconds(arguments, "read-timeout", 86400),
        lock_wait_s=whole_seconds(arguments, "lock-wait", MAX_LOCK_WAIT_S) or 0,
        encoding=arguments.text("encoding") or "utf-8",
        is_async=arguments.flag("async"),
        agent_port=arguments.port("port"),
        batch=batch_of(arguments),
    )


def batch_of(arguments: Arguments) -> dict[str, Any] | None:
    """Give how the run is rolled out, as `POST /run` takes it, or None.

    Raises:
        UsageError: an amount is none, or the options go with a batch that was not asked for.
    """
    size, canary = arguments.text("batch"), arguments.integer("canary", 1, 1_000_000)
    if size is None and canary is None:
        for name in ("max-failures", "pause"):
            if arguments.flag(name):
                raise UsageError(f"--{name} goes with --batch or --canary")
        return None
    return {
        # a canary alone: then all the others at once
        "size": "100%" if size is None else amount_of("batch", size, 1),
        "max_failures": amount_of("max-failures", arguments.text("max-failures") or "0", 0),
        "pause": arguments.duration_s("pause") or 0,
        "canary": canary or 0,
    }


def amount_of(name: str, text: str, least: int) -> int | str:
    """Give a number of hosts, or a percentage of them as its text.

    Raises:
        UsageError: it is neither.
    """
    digits = text.removesuffix("%")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= 7
    if not is_number or int(digits) < least or (digits != text and int(digits) > 100):
        raise UsageError(f"--{name}: expected a number of hosts or a percentage such as 10%, not {text!r}")
    return text if digits != text else int(digits)


def whole_seconds(arguments: Arguments, name: str, maximum: int) -> int | None:
    """Give a duration as whole seconds, at least one.

    Raises:
        UsageError: it is outside the range.
    """
    given = arguments.duration_s(name)
    if given is None:
        return None
    if not 1 <= given <= maximum:
        raise UsageError(f"--{name}: expected 1 to {maximum} seconds, not {arguments.text(name)!r}")
    return int(-(-given // 1))
