"""`ctrl-exec ping` and `discovery`: which agents answer, and what they offer."""

from __future__ import annotations

from ctrl_exec.cli import errors
from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, PORT_OPTION, TARGET_OPTIONS, Argument, Command
from ctrl_exec.cli.running import target_patterns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context

HOST = Argument(
    "HOST", "a registered agent, name:port, web[01-20], @tag=value, @all or !name", 0, None, "agent"
)

_OUT_OF_REACH = {"unreachable", "timeout"}


def execute_ping(context: Context, arguments: Arguments) -> int:
    """Ask agents whether they live, and show versions and certificate expiries."""
    from ctrl_exec.cli.progress import Progress, Release
    from ctrl_exec.cli.targets import expected_hosts, with_suggestions
    from ctrl_exec.common.errors import UsageError

    patterns = target_patterns(arguments.words, arguments)
    if not patterns:
        raise UsageError("missing HOST: name the hosts, or give --all or -t TAG=VALUE")
    way = context.way(arguments)
    hosts = expected_hosts(context, patterns, way) if context.output.is_live else ()
    with (
        with_suggestions(context),
        Release(errors.INTERRUPTED, "") as release,
        Progress(context.output, hosts) as progress,
    ):
        results = way.ping(patterns, release, progress.count)
    context.output.answer({"ok": True, "results": results}, lambda: show_pings(context, results))
    return errors.INTERRUPTED if release.is_pressed else exit_code(results)


def show_pings(context: Context, results: Iterable[Mapping[str, Any]]) -> None:
    """Print who answered and who did not."""
    columns: tuple[str, ...] = ("HOST", "STATUS", "RTT", "VERSION", "EXPIRY", "ERROR")
    rows = [[str(each.get(column.lower()) or "") for column in columns] for each in results]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    context.output.table(columns, rows)


def exit_code(results: Iterable[Mapping[str, Any]]) -> int:
    """Give 0 when all answered, 5 when nobody could be reached, else 1: one that refuses was reached."""
    states = {str(each.get("state", each.get("status"))) for each in results}
    if states <= {"ok"}:
        return errors.OK
    return errors.NOBODY if states <= _OUT_OF_REACH else errors.FAILED


def execute_discovery(context: Context, arguments: Arguments) -> int:
    """Ask agents for their scripts and tags."""
    from ctrl_exec.cli.progress import Release
    from ctrl_exec.cli.targets import with_suggestions

    patterns = target_patterns(arguments.words, arguments)
    with with_suggestions(context), Release(errors.INTERRUPTED, "") as release:
        hosts = context.way(arguments).discover(patterns, release)
    context.output.answer({"ok": True, "hosts": hosts}, lambda: show_capabilities(context, hosts))
    return errors.INTERRUPTED if release.is_pressed else exit_code(list(hosts.values()))


def show_capabilities(context: Context, hosts: Mapping[str, Mapping[str, Any]]) -> None:
    """Print each host with its tags and scripts."""
    columns = ("HOST", "STATUS", "VERSION", "TAGS", "SCRIPTS")
    context.output.table(columns, [capability_row(name, each) for name, each in hosts.items()])


def capability_row(name: str, found: Mapping[str, Any]) -> list[str]:
    """Give one host's row; a script that cannot be executed is marked with `!`."""
    tags = " ".join(f"{key}={each}" for key, each in sorted(dict(found.get("tags") or {}).items()))
    scripts = [
        str(each.get("name")) + ("" if each.get("executable", True) else "!")
        for each in found.get("scripts") or ()
    ]
    shown = " ".join(scripts) or str(found.get("error") or "")
    return [name, str(found.get("status") or ""), str(found.get("version") or ""), tags, shown]


COMMANDS = {
    "ping": Command(
        summary="check which agents answer, and when their certificates end",
        execute=execute_ping,
        arguments=(HOST,),
        options=(*TARGET_OPTIONS, PORT_OPTION, *CREDENTIAL_OPTIONS),
        examples=("ctrl-exec ping web-01 web-02", "ctrl-exec ping --all --json"),
        exit_codes=(0, 1, 2, 3, 5, 130),
    ),
    "discovery": Command(
        summary="list the scripts and tags that agents offer (all agents, or those named)",
        execute=execute_discovery,
        arguments=(HOST,),
        options=(*TARGET_OPTIONS, PORT_OPTION, *CREDENTIAL_OPTIONS),
        examples=("ctrl-exec discovery", "ctrl-exec discovery -t role=db --json"),
        exit_codes=(0, 1, 2, 3, 5, 130),
    ),
}
