"""`ctrl-exec`: finds the command, parses its words, runs it, maps errors to exit codes.

Owns the table of commands, each with the module that is imported when it is asked for and not
before. The only module of the command line that reads `sys` and `os.environ`.
"""

from __future__ import annotations

import os
import sys

from ctrl_exec import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn, TextIO

    from ctrl_exec.cli.command import Command
    from ctrl_exec.cli.output import Output

# In the order in which `ctrl-exec help` shows them.
MODULES = {
    "run": "running",
    "ping": "fleet",
    "discovery": "fleet",
    "status": "running",
    "output": "live",
    "wait": "live",
    "cancel": "live",
    "runs": "listing",
    "list-agents": "registry",
    "edit-agent": "registry",
    "unpair": "registry",
    "revoke": "registry",
    "pairing-mode": "pairing",
    "list-requests": "pairing",
    "approve": "pairing",
    "deny": "pairing",
    "pairing-token": "pairing",
    "setup-ca": "pairing",
    "setup-ctrl-exec": "pairing",
    "list-locks": "running",
    "user": "tasks_people",
    "token": "tasks_people",
    "team": "tasks_teams",
    "project": "tasks_projects",
    "constant": "tasks_constants",
    "task": "tasks_definitions",
    "execution": "tasks_executions",
    "notifier": "tasks_notifiers",
    "webhook": "tasks_webhooks",
    "audit": "tasks_audit",
    "secrets": "tasks_secrets",
    "check-config": "checking",
    "doctor": "checking",
    "demo": "demo",
    "completion": "completion",
    "help": "help",
}

# Commands of the product that this version does not have; said plainly instead of "unknown".
LATER = ("rotate-cert", "serial-status", "maintain")


def main() -> NoReturn:
    """Run the command of the process's own command line and leave with its exit code."""
    words = sys.argv[1:]
    if words == ["--version"]:
        sys.stdout.write(f"ctrl-exec {__version__}\n")
        leave(0)
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        # an old locale: arguments are bytes for the script all the same, and answers stay UTF-8
        words = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in words]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # the real streams have it
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as above
    leave(run(words, dict(os.environ), sys.stdin, sys.stdout, sys.stderr))


def leave(code: int) -> NoReturn:
    """End the process: its output brought out, the interpreter's clean-up (4 ms and more) skipped."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        # who read our output has gone: end as any program does, by SIGPIPE
        import signal

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    except OSError as error:
        os.write(2, f"ctrl-exec: standard output: {error.strerror}\n".encode())
        code = code or 1
    os._exit(code)


def run(
    words: Sequence[str], environment: Mapping[str, str], stdin: TextIO, stdout: TextIO, stderr: TextIO
) -> int:
    """Run one command line and give its exit code; never raises for bad input."""
    from ctrl_exec.cli import errors
    from ctrl_exec.cli.output import Output
    from ctrl_exec.common.errors import CtrlExecError

    before_dashes = words[: words.index("--")] if "--" in words else words
    output = Output(
        stdout,
        stderr,
        is_json="--json" in before_dashes,
        is_quiet="--quiet" in before_dashes or "-q" in before_dashes,
        is_colour_allowed=not environment.get("NO_COLOR") and "--no-color" not in before_dashes,
    )
    name = ""
    try:
        name, others = split_command(words)
        return run_command(name, others, environment, stdin, output)
    except CtrlExecError as error:
        return report(error, name, output)
    except KeyboardInterrupt:
        return fail(output, "interrupted", "interrupted", errors.INTERRUPTED)
    except BrokenPipeError:
        return errors.FAILED
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ctrl_exec"):
            return fault(error, output, stderr, is_verbose="-v" in before_dashes)
        words_of_it = f"no Python package {error.name}: run `make install`, then .venv/bin/ctrl-exec"
        return fail(output, "failed", words_of_it, errors.FAILED)
    except Exception as error:  # noqa: BLE001 - the border of the process: a fault of ours, not of the user
        return fault(error, output, stderr, is_verbose="-v" in before_dashes)


def fault(error: Exception, output: Output, stderr: TextIO, *, is_verbose: bool) -> int:
    """Show a fault of the program itself, with `-v` where it is, and give its exit code."""
    from ctrl_exec.cli import errors

    if is_verbose:
        import traceback

        traceback.print_exception(error, file=stderr)
    detail = f"internal error: {type(error).__name__}: {error} (-v shows where)"
    return fail(output, "server error", detail, errors.FAILED)


def split_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """Give the command's name and the words without it; options may stand before it.

    Raises:
        UsageError: there is no command of that name.
    """
    from ctrl_exec.cli.arguments import option_table
    from ctrl_exec.cli.command import SHARED_OPTIONS
    from ctrl_exec.common.errors import UsageError

    table = option_table(SHARED_OPTIONS)
    position = 0
    while position < len(words) and words[position].startswith("-") and words[position] != "--":
        option = table.get(words[position].partition("=")[0])
        if option is None and words[position][:2] not in table:
            raise UsageError(
                f"unknown option {words[position]} before the command; options of one command go after it"
            )
        position += 2 if option is not None and option.metavar and "=" not in words[position] else 1
    before, others = list(words[:position]), list(words[position:])
    if not others or others[0] == "--":
        return without_command(before)
    name = others.pop(0)
    if name not in MODULES:
        raise UsageError(unknown_command(name))
    return name, before + others


def without_command(before: list[str]) -> tuple[str, list[str]]:
    """Give the command that options alone ask for: `help` for `-h`, `version` for `--version`.

    Raises:
        UsageError: they ask for nothing.
    """
    from ctrl_exec.common.errors import UsageError

    if "-h" in before or "--help" in before or "--version" in before:
        return "help", before
    raise UsageError("no command given; `ctrl-exec help` lists them")


def unknown_command(name: str) -> str:
    """Say that there is no such command, and which one may have been meant."""
    from ctrl_exec.cli.arguments import suggestion

    if name in LATER:
        return f"{name} is not part of version {__version__}"
    return f"unknown command {name!r}{suggestion(name, MODULES)}; `ctrl-exec help` lists them all"


def load_command(name: str) -> Command:
    """Import the module of a command and give the command."""
    module = __import__(f"ctrl_exec.cli.{MODULES[name]}", fromlist=["COMMANDS"])
    found: Command = module.COMMANDS[name]
    return found


def run_command(
    name: str, words: list[str], environment: Mapping[str, str], stdin: TextIO, output: Output
) -> int:
    """Parse the words of one command and execute it.

    Raises:
        CtrlExecError: whatever the command raises.
    """
    from ctrl_exec.cli.arguments import option_table, parse
    from ctrl_exec.cli.command import GLOBAL_OPTIONS
    from ctrl_exec.cli.context import Context
    from ctrl_exec.common.process import seal_descriptors, use_default_sigchld

    # an inherited SIG_IGN would turn a denying hook into an allowing one (safety §1.17)
    use_default_sigchld()
    seal_descriptors()
    command = load_command(name)
    arguments = parse(words, command, option_table(GLOBAL_OPTIONS + command.options))
    if arguments.flag("version"):
        output.answer({"ok": True, "version": __version__}, lambda: output.line(f"ctrl-exec {__version__}"))
        return 0
    if arguments.flag("help") and name != "help":
        from ctrl_exec.cli.help import show_help

        show_help(output, name, command)
        return 0
    context = Context(
        output,
        stdin,
        environment,
        config_path=arguments.text("config") or "",
        stays_root=command.stays_root,
        is_verbose=arguments.flag("verbose"),
    )
    return command.execute(context, arguments)


def report(error: Exception, name: str, output: Output) -> int:
    """Show an error and what to do next, and give its exit code."""
    from ctrl_exec.cli import errors
    from ctrl_exec.common.errors import CtrlExecError

    if not isinstance(error, CtrlExecError):
        raise error
    if output.is_json:
        output.document(errors.as_document(error))
        return errors.exit_code(error)
    output.error(str(error))
    step = errors.next_step(error, name)
    if step:
        output.stderr.write(step + "\n")
    return errors.exit_code(error)


def fail(output: Output, word: str, detail: str, code: int) -> int:
    """Show a failure that is no error of ours, and give its exit code."""
    if output.is_json:
        output.document({"ok": False, "error": word, "detail": detail})
    else:
        output.error(detail)
    return code


if __name__ == "__main__":
    main()
