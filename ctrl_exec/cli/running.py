"""`ctrl-exec run`, `status` and `list-locks`: start a script on hosts, look at what became of it."""

from __future__ import annotations

from ctrl_exec.cli import errors
from ctrl_exec.cli.command import (
    CREDENTIAL_OPTIONS,
    PORT_OPTION,
    TARGET_OPTIONS,
    Argument,
    Command,
    Option,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.progress import Release
    from ctrl_exec.cli.results import ResultPrinter
    from ctrl_exec.cli.way import Way
    from ctrl_exec.cli.wish import Wish
    from ctrl_exec.common.messages import HostResult

FAREWELL = "ctrl-exec: leaving; the scripts go on"


def target_patterns(hosts: Sequence[str], arguments: Arguments) -> tuple[str, ...]:
    """Give the host patterns of a command line: the words, `--all`, `-t` and `-x`.

    Raises:
        UsageError: a tag is not `TAG=VALUE`.
    """
    from ctrl_exec.common.errors import UsageError

    patterns = list(hosts)
    if arguments.flag("all"):
        patterns.append("@all")
    for tag in arguments.many("tag"):
        if "=" not in tag:
            raise UsageError(f"--tag: expected TAG=VALUE, not {tag!r}")
        patterns.append(f"@{tag}")
    patterns += [f"!{name}" for name in arguments.many("exclude")]
    return tuple(patterns)


def execute_run(context: Context, arguments: Arguments) -> int:
    """Run a script on hosts and show what each of them answered."""
    from ctrl_exec.cli.targets import with_suggestions
    from ctrl_exec.cli.wish import run_wish

    wish = run_wish(arguments, target_patterns(arguments.words[:-1], arguments))
    with with_suggestions(context, () if arguments.rest else arguments.words):
        if arguments.flag("follow"):
            return run_followed(context, arguments, wish)
        return run_to_the_end(context, arguments, wish)


def run_followed(context: Context, arguments: Arguments, wish: Wish) -> int:
    """Start it and show its output as it comes; it goes on whatever becomes of us."""
    from ctrl_exec.cli.live import watch
    from ctrl_exec.cli.progress import Release
    from ctrl_exec.common.value import replace

    # held from before the start to the end: a press that comes while it is begun lets go of it then
    with Release(errors.INTERRUPTED, FAREWELL, presses=2) as release:
        try:
            document = context.way(arguments).run(replace(wish, is_async=True), release)
        except KeyboardInterrupt:
            return say_unknown(context)
        reqid = str(document["reqid"])
        context.output.message(f"run {reqid}")
        return watch(context, arguments, reqid, release, cancels=True)


def run_to_the_end(context: Context, arguments: Arguments, wish: Wish) -> int:
    """Run it and show the results, in this process as they come."""
    from ctrl_exec.cli.progress import Progress, Release
    from ctrl_exec.cli.results import ResultPrinter, prints_gathered
    from ctrl_exec.cli.targets import expected_hosts

    way = context.way(arguments)
    hosts = () if context.output.is_json else expected_hosts(context, wish.hosts, way)
    if way.is_daemon and context.output.is_live and len(hosts) != 1 and not wish.is_async:
        return run_watched(context, arguments, wish)
    printer = ResultPrinter(context.output, hosts, is_gathering=prints_gathered(arguments, len(hosts)))
    with Release(errors.INTERRUPTED, FAREWELL, presses=2) as release:
        with Progress(context.output, hosts) as progress:

            def on_result(result: HostResult) -> None:
                progress.erase()
                printer.add(result)
                progress.count(result.state, result.host)
                progress.draw()

            try:
                document = way.run(wish, release, on_result)
            except KeyboardInterrupt:
                return say_unknown(context)
        if wish.is_async:
            return show_accepted(context, document)
        if way.is_daemon and not release.is_pressed:
            document = awaited(way, document, release)
        return show_run(context, arguments, document, printer, release)


def awaited(way: Way, document: dict[str, Any], release: Release) -> dict[str, Any]:
    """Give the answer of a run that the daemon let go of for reasons of its own, as it is in the end.

    It stops, or has no room for another long request; a run in this process would have gone on.
    """
    from ctrl_exec.cli.following import ONLY_THE_END

    open_states = ("pending", "accepted", "running")
    if all(each["state"] not in open_states or each.get("error") for each in document["results"]):
        return document
    for _ in way.events(str(document["reqid"]), release, ONLY_THE_END):
        pass
    return document | {"results": way.status(str(document["reqid"]))["results"]}


def run_watched(context: Context, arguments: Arguments, wish: Wish) -> int:
    """Have the daemon run it on many hosts for a person at a terminal: the states live, then the results.

    The daemon's answer to a plain run would come when the last host has ended. As there, a host that is
    silent for longer than the read timeout is not waited for.
    """
    from ctrl_exec.cli.progress import Progress, Release
    from ctrl_exec.cli.results import ResultPrinter
    from ctrl_exec.cli.watching import Silence, show_event
    from ctrl_exec.common.value import replace

    way = context.way(arguments)
    patience_s = wish.read_timeout_s or context.settings.read_timeout
    with Release(errors.INTERRUPTED, FAREWELL, presses=2) as release:
        try:
            reqid = str(way.run(replace(wish, is_async=True), release)["reqid"])
        except KeyboardInterrupt:
            return say_unknown(context)
        silence = Silence(patience_s, release.expire)
        with Progress(context.output, (), on_tick=silence.check) as progress:
            for event in way.events(reqid, release):
                silence.note(event)
                show_event(progress, event)
        document = way.status(reqid)
        shown = {"ok": True, "reqid": reqid, "results": silence.explained(document["results"])}
        return show_run(
            context, arguments, shown, ResultPrinter(context.output, (), is_gathering=False), release
        )


def show_run(
    context: Context,
    arguments: Arguments,
    document: Mapping[str, Any],
    printer: ResultPrinter,
    release: Release,
) -> int:
    """Show what became of a run on its hosts; give the exit code."""
    from ctrl_exec.cli.results import exit_code, prints_gathered, show_results
    from ctrl_exec.common.messages import HostResult

    results = [HostResult.from_json(each) for each in document["results"]]
    is_gathering = prints_gathered(arguments, len(results))

    def show() -> None:
        if printer.knows_hosts:
            printer.finish(results)
        else:
            show_results(context.output, results, is_gathering=is_gathering)

    context.output.answer(document, show)
    if all(result.is_final for result in results):
        return exit_code(results)
    if release.is_pressed and not release.has_expired:
        from ctrl_exec.cli.live import let_go

        return let_go(context, arguments, str(document["reqid"]), release, cancels=True, has_answered=True)
    context.output.message(f"not finished everywhere: ctrl-exec status {document['reqid']}")
    return exit_code(results)


def say_unknown(context: Context) -> int:
    """Tell that we left before the daemon had said what it began."""
    detail = "left before the daemon had answered; what was begun goes on: ctrl-exec runs shows it"
    context.output.answer({"ok": False, "error": "interrupted", "detail": detail}, lambda: None)
    context.output.message(detail)
    return errors.INTERRUPTED


def show_accepted(context: Context, document: Mapping[str, Any]) -> int:
    """Print the request id of a run that goes on without us."""
    reqid = str(document["reqid"])
    context.output.answer(document, lambda: context.output.line(reqid))
    context.output.message(f"accepted; `ctrl-exec status {reqid}` shows how far it is")
    return errors.OK


def execute_status(context: Context, arguments: Arguments) -> int:
    """Show the record of a run."""
    return show_status(context, context.way(arguments).status(arguments.words[0]))


def show_status(context: Context, document: Mapping[str, Any]) -> int:
    """Print a record: what and when, then the results there are; give the exit code."""
    from ctrl_exec.cli.output import printable
    from ctrl_exec.cli.results import GATHER_ABOVE, exit_code, show_results, summary
    from ctrl_exec.common.messages import HostResult

    results = [HostResult.from_json(each) for each in document["results"]]
    in_batches = {host for each in document.get("batches", ()) if not each["begun"] for host in each["hosts"]}
    # of the batches that were not begun their own lines say so
    begun = [each for each in results if each.state != "pending" and each.host not in in_batches]

    def show() -> None:
        output = context.output
        what = printable(" ".join([document["script"], *document["args"]]))
        output.line(f"{document['reqid']}  {document['state']}  {what}")
        output.line(summary(results))
        if document.get("batches"):
            from ctrl_exec.cli.batches import batch_lines

            for line in batch_lines(document, results):
                output.line(line)
        show_results(output, begun, is_gathering=len(results) > GATHER_ABOVE)

    context.output.answer(document, show)
    return exit_code(results) if document["complete"] else errors.OK


def execute_list_locks(context: Context, _arguments: Arguments) -> int:
    """List what is running: the locks that are held."""
    from ctrl_exec.services.locks import ScriptLocks

    held = sorted(ScriptLocks(context.config.locks_dir).held())
    document = {"ok": True, "locks": [{"host": host, "script": script} for host, script in held]}
    context.output.answer(document, lambda: context.output.table(("HOST", "SCRIPT"), held))
    return errors.OK


COMMANDS = {
    "run": Command(
        summary="run a script on hosts",
        execute=execute_run,
        arguments=(
            Argument(
                "HOST",
                "a registered agent, name:port, web[01-20], @tag=value, @all or !name",
                0,
                None,
                "agent",
            ),
            Argument("SCRIPT", "the script's name in the agents' allowlist", 1, 1, "script"),
        ),
        options=(
            *TARGET_OPTIONS,
            PORT_OPTION,
            Option(
                ("--timeout",),
                "end the script on the agent after this long: seconds, or 30s, 10m, 2h",
                "SECONDS",
            ),
            Option(
                ("--read-timeout",), "wait this long for a silent agent (default: read_timeout)", "SECONDS"
            ),
            Option(("--lock-wait",), "wait this long for other runs of the script on these hosts", "SECONDS"),
            Option(("--async",), "start it, print the request id and leave"),
            Option(("-f", "--follow"), "show output as it comes, each line behind its host's name"),
            Option(("--batch",), "so many hosts at a time: a number, or 10%", "SIZE"),
            Option(("--canary",), "so many hosts before all others", "COUNT"),
            Option(("--max-failures",), "begin no further batch once more have failed (default: 0)", "COUNT"),
            Option(("--pause",), "wait this long between batches", "SECONDS"),
            Option(("--encoding",), "how output comes with --json", "ENCODING", choices=("utf-8", "base64")),
            Option(("--gather",), "show output that is alike once (the default above 10 hosts)"),
            Option(("--no-gather",), "show every host's output"),
            *CREDENTIAL_OPTIONS,
        ),
        description=(
            "The last word before `--` is the script; the words after `--` are its arguments. Each host's "
            "result stands under a header; results of many hosts that are alike are gathered under one.\n"
            "Ctrl-C lets go of the run, which goes on; the message says how to come back to it. The next one "
            "cancels it."
        ),
        examples=(
            "ctrl-exec run web-01 web-02 deploy -- --version 1.4",
            "ctrl-exec run -t role=web -x web-07 restart",
            "ctrl-exec run --all --async --json uptime",
            "ctrl-exec run -t role=web --canary 1 --batch 20% --max-failures 1 deploy",
        ),
        takes_rest=True,
        exit_codes=(0, 1, 2, 3, 4, 5, 130),
    ),
    "status": Command(
        summary="show what became of a run",
        execute=execute_status,
        arguments=(Argument("ID", "the request id of the run", 1, 1, "reqid"),),
        options=CREDENTIAL_OPTIONS,
        examples=("ctrl-exec status 4f1d2c3b4a596877",),
        exit_codes=(0, 1, 2, 3, 5),
    ),
    "list-locks": Command(
        summary="list the scripts that are running, by host",
        execute=execute_list_locks,
        examples=("ctrl-exec list-locks --json",),
    ),
}
