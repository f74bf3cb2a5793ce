"""`ctrl-exec runs`: which runs there were, newest first, a page at a time."""

from __future__ import annotations

from ctrl_exec.cli import errors
from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context

STATES = ("running", "completed", "cancelled", "interrupted")
MAX_LIMIT = 1000
DEFAULT_LIMIT = 50
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


def execute_runs(context: Context, arguments: Arguments) -> int:
    """List runs."""
    document = context.way(arguments).runs(wanted_of(arguments))
    context.output.answer(document, lambda: show_runs(context, document))
    return errors.OK


def wanted_of(arguments: Arguments) -> dict[str, str]:
    """Give the parameters that the options ask for.

    Raises:
        UsageError: a number or a moment is none.
    """
    given = {name: arguments.text(name) for name in ("state", "script", "host", "user", "cursor")}
    wanted = {name: text for name, text in given.items() if text is not None}
    since = since_of(arguments)
    if since is not None:
        wanted["since"] = str(since)
    return wanted | {"limit": str(arguments.integer("limit", 1, MAX_LIMIT) or DEFAULT_LIMIT)}


def since_of(arguments: Arguments) -> int | None:
    """Give the epoch second of `--since`: a moment such as 2026-01-31T12:00:00Z, or so long ago.

    Raises:
        UsageError: it is neither.
    """
    from ctrl_exec.common.clock import epoch_now, parse_iso_z
    from ctrl_exec.common.errors import MessageError, UsageError

    text = arguments.text("since")
    if text is None:
        return None
    try:
        if "T" in text:
            return int(parse_iso_z(text).timestamp())
        return max(0, epoch_now() - int(arguments.duration_s("since") or 0))
    except (MessageError, UsageError) as error:
        expected = "expected how long ago (90s, 30m, 2h, 7d) or a moment such as 2026-01-31T12:00:00Z"
        raise UsageError(f"--since: {expected}, not {text!r}") from error


def query(wanted: Mapping[str, str]) -> str:
    """Give the query of a path, percent-encoded. Source: RFC 3986 §2."""
    parts = [f"{name}={''.join(map(_escaped, text))}" for name, text in wanted.items()]
    return "?" + "&".join(parts) if parts else ""


def _escaped(letter: str) -> str:
    if letter in _UNRESERVED:
        return letter
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))


def list_here(context: Context, arguments: Arguments, wanted: Mapping[str, str]) -> dict[str, Any]:
    """List them from this process, as the API does."""
    from ctrl_exec.common.names import check_agent_name, check_script
    from ctrl_exec.operations.runs import head_json, list_runs
    from ctrl_exec.services.run_filter import RunFilter

    since = wanted.get("since")
    asked = RunFilter(
        state=wanted.get("state", ""),
        script=check_script(wanted["script"]) if "script" in wanted else "",
        host=check_agent_name(wanted["host"]) if "host" in wanted else "",
        user=wanted.get("user", ""),
        since=None if since is None else int(since),
    )
    after = place_of(wanted["cursor"]) if "cursor" in wanted else None
    page = list_runs(
        context.dispatcher, context.caller(arguments), asked, limit=int(wanted["limit"]), after=after
    )
    document: dict[str, Any] = {"ok": True, "runs": [head_json(head) for head in page.runs]}
    if page.after is not None:
        document["cursor"] = f"{page.after[0]:x}-{page.after[1]}"
    return document | ({"indexing": True} if page.is_indexing else {})


def place_of(cursor: str) -> tuple[int, str]:
    """Give the place that a cursor stands for. Raises: InvalidInputError."""
    from ctrl_exec.common.errors import InvalidInputError
    from ctrl_exec.common.names import REQID

    created, dash, reqid = cursor.partition("-")
    try:
        if dash and 0 < len(created) <= 14 and REQID.fullmatch(reqid):
            return int(created, 16), reqid
    except ValueError:
        pass
    raise InvalidInputError("cursor: expected what an earlier answer gave as cursor", field="cursor")


def show_runs(context: Context, document: Mapping[str, Any]) -> None:
    """Print a row for each run, and how to see more."""
    rows = [row_of(each) for each in document["runs"]]
    context.output.table(("ID", "STARTED", "STATE", "TOOK", "HOSTS", "SCRIPT"), rows)
    if document.get("indexing"):
        context.output.message("the list of runs is being made anew; older ones may be missing for a moment")
    if "cursor" in document:
        context.output.message(f"older ones: the same with --cursor {document['cursor']}")


def row_of(run: Mapping[str, Any]) -> list[str]:
    """Give the cells of one run."""
    import time

    created, completed = int(run["created"]), run.get("completed")
    took = "" if completed is None else f"{int(completed) - created}s"
    counts = dict(run.get("counts") or {})
    hosts = ", ".join(f"{count} {state}" for state, count in counts.items()) or str(len(run["hosts"]))
    what = " ".join([str(run["script"]), *map(str, run.get("args") or ())])
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created))
    return [str(run["reqid"]), started, str(run["state"]), took, hosts, what]


COMMANDS = {
    "runs": Command(
        summary="list runs, newest first",
        execute=execute_runs,
        options=(
            Option(("--state",), "only those in this state", "STATE", choices=STATES),
            Option(("--script",), "only those of this script", "SCRIPT", completes="script"),
            Option(("--host",), "only those that this agent was in", "HOST", completes="agent"),
            Option(("--user",), "only those of this user", "NAME"),
            Option(("--since",), "only those begun since: 2h (ago), or 2026-01-31T12:00:00Z", "WHEN"),
            Option(("--limit",), f"so many at once (default {DEFAULT_LIMIT}, at most {MAX_LIMIT})", "COUNT"),
            Option(("--cursor",), "go on where an earlier list ended", "CURSOR"),
            *CREDENTIAL_OPTIONS,
        ),
        examples=("ctrl-exec runs --since 2h --state running", "ctrl-exec runs --host web-01 --json"),
        exit_codes=(0, 1, 2, 3),
    ),
}
