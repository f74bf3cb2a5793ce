"""`ctrl-exec output`, `wait` and `cancel`: a run that goes on, watched, waited for, ended."""

from __future__ import annotations

from ctrl_exec.cli import errors
from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, TIMEOUT_OPTION, Argument, Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.progress import Release

# how long a second Ctrl-C is waited for after the first
SECOND_PRESS_S = 3.0
FAREWELL = "ctrl-exec: leaving; the run goes on"


def execute_output(context: Context, arguments: Arguments) -> int:
    """Show the output of a run, with `-f` as it comes."""
    reqid = arguments.words[0]
    if arguments.flag("follow"):
        from ctrl_exec.cli.progress import Release

        with Release(errors.INTERRUPTED, FAREWELL) as release:
            return watch(context, arguments, reqid, release, cancels=False)
    from ctrl_exec.cli.running import show_status

    return show_status(context, context.way(arguments).status(reqid))


def watch(context: Context, arguments: Arguments, reqid: str, release: Release, *, cancels: bool) -> int:
    """Show a run's output as it comes, then how it ended on each host; give the exit code.

    Ctrl-C lets go of it; with `cancels` the next one cancels it, as it does where a run is one's own.
    """
    from ctrl_exec.cli.results import exit_code
    from ctrl_exec.cli.watching import Watcher

    watcher = Watcher(context.output, shows_output=True)
    way = context.way(arguments)
    for event in way.events(reqid, release):
        watcher.take(event)
    watcher.close()
    if not watcher.is_over and release.is_pressed:
        return let_go(context, arguments, reqid, release, cancels=cancels)
    if context.output.is_json:
        from ctrl_exec.cli.running import show_status

        return show_status(context, way.status(reqid))
    watcher.show_verdicts()
    return exit_code(watcher.results[host] for host in watcher.hosts if host in watcher.results)


def let_go(
    context: Context,
    arguments: Arguments,
    reqid: str,
    release: Release,
    *,
    cancels: bool,
    has_answered: bool = False,
) -> int:
    """Tell how to come back to a run that goes on; a second Ctrl-C cancels it. Gives the exit code."""
    output = context.output
    detail = f"let go of the run, it goes on: ctrl-exec output -f {reqid}"
    if not has_answered:
        output.answer({"ok": False, "error": "interrupted", "detail": detail, "reqid": reqid}, lambda: None)
    if not cancels or not release.may_press_again:
        output.message(detail)
        return errors.INTERRUPTED
    output.message(f"{detail}\nCtrl-C again within {SECOND_PRESS_S:.0f} seconds cancels it")
    output.flush()
    if release.wait_for_another(SECOND_PRESS_S):
        with_new_release(context, arguments, reqid)
    return errors.INTERRUPTED


def with_new_release(context: Context, arguments: Arguments, reqid: str) -> None:
    """Cancel the run and say what became of it; the next Ctrl-C leaves at once."""
    from ctrl_exec.cli.progress import Release

    context.output.message("cancelling …")
    with Release(errors.INTERRUPTED, FAREWELL) as release:
        document = context.way(arguments).cancel(reqid, release)
    if not context.output.is_json:  # whose one document is written
        show_cancel(context, document)


def execute_wait(context: Context, arguments: Arguments) -> int:
    """Wait for the end of a run; give its exit code."""
    from ctrl_exec.cli.following import ONLY_THE_END
    from ctrl_exec.cli.progress import Release

    reqid = arguments.words[0]
    timeout_s = arguments.duration_s("timeout")
    way = context.way(arguments)
    with Release(errors.INTERRUPTED, FAREWELL) as release:
        if timeout_s is not None:
            release.expire_after(timeout_s)
        for _ in way.events(reqid, release, ONLY_THE_END):
            pass
        is_let_go, has_expired = release.is_pressed, release.has_expired
    document = way.status(reqid)
    code = show_end(context, document)
    if document["complete"]:
        return code
    if has_expired:
        context.output.message(f"not over after {timeout_s:g} s: ctrl-exec wait {reqid}")
        return errors.TIMED_OUT
    if is_let_go:
        context.output.message(f"it goes on: ctrl-exec wait {reqid}")
    return errors.INTERRUPTED


def show_end(context: Context, document: Mapping[str, Any]) -> int:
    """Print how a run stands, without its output; give its exit code."""
    from ctrl_exec.cli.output import printable
    from ctrl_exec.cli.results import exit_code, summary
    from ctrl_exec.common.messages import HostResult

    results = [HostResult.from_json(each) for each in document["results"]]

    def show() -> None:
        what = printable(" ".join([document["script"], *document["args"]]))
        context.output.line(f"{document['reqid']}  {document['state']}  {what}")
        context.output.line(summary(results))

    context.output.answer(document, show)
    return exit_code(results)


def execute_cancel(context: Context, arguments: Arguments) -> int:
    """Cancel a run."""
    from ctrl_exec.cli.progress import Release

    with Release(errors.INTERRUPTED, FAREWELL) as release:
        document = context.way(arguments).cancel(arguments.words[0], release)
    return show_cancel(context, document)


def show_cancel(context: Context, document: Mapping[str, Any]) -> int:
    """Print for each host whether what ran there has ended; give 0 if it has everywhere."""
    hosts = list(document["hosts"])

    def show() -> None:
        rows = [
            (each["host"], each["state"], "yes" if each["ended"] else "no", each.get("error", ""))
            for each in hosts
        ]
        columns: tuple[str, ...] = ("HOST", "STATE", "ENDED", "ERROR")
        if not any(row[-1] for row in rows):
            columns, rows = columns[:-1], [row[:-1] for row in rows]  # type: ignore[misc]  # three cells then
        context.output.table(columns, rows)

    context.output.answer(document, show)
    return errors.OK if all(each["ended"] for each in hosts) else errors.FAILED


ID = Argument("ID", "the request id of the run", 1, 1, "reqid")

COMMANDS = {
    "output": Command(
        summary="show the output of a run, also while it goes on",
        execute=execute_output,
        arguments=(ID,),
        options=(Option(("-f", "--follow"), "as it comes, to the end of the run"), *CREDENTIAL_OPTIONS),
        description=(
            "Without -f what there is, under a header for each host. With -f each line stands behind the "
            "name of its host, and in the end those that are alike are gathered under one header; with "
            "one host there is nothing but its output. Ctrl-C ends the watching, not the run."
        ),
        examples=("ctrl-exec output -f 4f1d2c3b4a596877",),
        exit_codes=(0, 1, 2, 3, 5, 130),
    ),
    "wait": Command(
        summary="wait for the end of a run",
        execute=execute_wait,
        arguments=(ID,),
        options=(TIMEOUT_OPTION, *CREDENTIAL_OPTIONS),
        description="The exit code is the run's; 124 when it is not over after --timeout.",
        examples=("ctrl-exec wait 4f1d2c3b4a596877 --timeout 10m",),
        exit_codes=(0, 1, 2, 3, 5, 124, 130),
    ),
    "cancel": Command(
        summary="end a run on all its hosts",
        execute=execute_cancel,
        arguments=(ID,),
        options=CREDENTIAL_OPTIONS,
        description=(
            "Agents send TERM to everything the script started, and KILL after five seconds; no further "
            "batch is begun. The exit code is 0 when all of it has ended, also if it had before."
        ),
        examples=("ctrl-exec cancel 4f1d2c3b4a596877",),
        exit_codes=(0, 1, 2, 3, 130),
    ),
}
