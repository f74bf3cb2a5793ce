"""`ctrl-exec help`, and `--help` of every command, from the same table that the parser uses."""

from __future__ import annotations

from ctrl_exec import __version__
from ctrl_exec.cli.command import GLOBAL_OPTIONS, Action, Argument, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.command import Option
    from ctrl_exec.cli.context import Context
    from ctrl_exec.cli.output import Output

WIDTH = 80
EXIT_CODES: Mapping[int, str] = {
    0: "done; every host that was asked succeeded",
    1: "a host failed, was refused or is unknown, or the operation failed",
    2: "wrong usage or configuration",
    3: "authorisation denied",
    4: "the script is locked on a host",
    5: "no host could be reached",
    124: "timed out waiting",
    130: "interrupted",
}


def show_help(output: Output, name: str, command: Command) -> None:
    """Print the help of one command, or with `--json` its shape as a document."""
    output.answer(
        {"ok": True, "command": as_document(name, command)}, lambda: output.raw(help_text(name, command))
    )


def as_document(name: str, command: Command) -> dict[str, object]:
    """Give a command as `{"name", "summary", "usage", "options": [{"names", "value", "doc"}]}`."""
    options = [
        {"names": list(option.names), "value": option.metavar, "doc": option.doc}
        for option in command.options + GLOBAL_OPTIONS
    ]
    document: dict[str, object] = {
        "name": name,
        "summary": command.summary,
        "usage": usage(name, command),
        "options": options,
    }
    if command.actions:
        keys = ("name", "words", "doc")
        document["actions"] = [
            dict(zip(keys, (each.name, each.shape, each.doc), strict=True)) for each in command.actions
        ]
    return document


def usage(name: str, command: Command) -> str:
    """Give the line that shows how a command is typed."""
    parts = ["ctrl-exec", name, *(shown_argument(each) for each in command.arguments)]
    if command.options:
        parts.append("[OPTION]...")
    if command.takes_rest:
        parts.append("[-- ARG...]")
    return " ".join(parts)


def shown_argument(argument: Argument) -> str:
    """Give `HOST`, `HOST...`, `[HOST]` or `[HOST...]`."""
    shown = argument.name if argument.maximum == 1 else argument.name + "..."
    return shown if argument.minimum else f"[{shown}]"


def shown_action(action: Action) -> tuple[str, str]:
    """Give `grant PROJECT USER ROLE` and what it does."""
    return f"{action.name} {action.shape}".rstrip(), action.doc


def help_text(name: str, command: Command) -> str:
    """Give the whole help of one command."""
    parts = [f"usage: {usage(name, command)}", "", *wrapped(sentence(command.summary), WIDTH)]
    if command.description:
        parts += [
            "",
            *(line for text in command.description.split("\n") for line in wrapped(text, WIDTH) or [""]),
        ]
    if command.actions:
        parts += listing("actions", [shown_action(each) for each in command.actions])
    else:
        parts += listing("arguments", [(shown_argument(each), each.doc) for each in command.arguments])
    parts += listing("options", [(shown_option(each), each.doc) for each in command.options])
    parts += listing("options of every command", [(shown_option(each), each.doc) for each in GLOBAL_OPTIONS])
    if command.examples:
        parts += ["", "examples:", *(f"  {example}" for example in command.examples)]
    parts += listing("exit codes", [(str(code), EXIT_CODES[code]) for code in command.exit_codes])
    return "\n".join(parts) + "\n"


def shown_option(option: Option) -> str:
    """Give `-t, --tag TAG=VALUE`."""
    return ", ".join(option.names) + (f" {option.metavar}" if option.metavar else "")


def listing(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Give a titled list of words with their meaning, or nothing for no rows."""
    if not rows:
        return []
    left = min(26, max(len(word) for word, _ in rows))
    found = ["", f"{title}:"]
    for word, meaning in rows:
        lines = wrapped(meaning, WIDTH - left - 4)
        if len(word) > left:
            found.append(f"  {word}")
            word = ""  # noqa: PLW2901 - the word stands on the line above
        found += [f"  {(word if at == 0 else ''):<{left}}  {line}" for at, line in enumerate(lines)]
    return found


def wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines at its blanks."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def sentence(text: str) -> str:
    """Give a summary as a sentence."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def execute(context: Context, arguments: Arguments) -> int:
    """List all commands, or show the help of one."""
    from ctrl_exec.cli.main import MODULES, load_command, unknown_command
    from ctrl_exec.common.errors import UsageError

    if arguments.words:
        name = arguments.words[0]
        if name not in MODULES:
            raise UsageError(unknown_command(name))
        show_help(context.output, name, load_command(name))
        return 0
    found = {name: load_command(name) for name in MODULES}
    document = {
        "ok": True,
        "version": __version__,
        "commands": [as_document(*each) for each in found.items()],
    }
    context.output.answer(document, lambda: context.output.raw(overview(found)))
    return 0


def overview(commands: Mapping[str, Command]) -> str:
    """Give the list of all commands with their summaries."""
    parts = ["usage: ctrl-exec COMMAND [WORD]... [OPTION]... [-- ARG...]", ""]
    parts += wrapped("Run allow-listed scripts on a fleet of agents over mutual TLS.", WIDTH)
    parts += listing("commands", [(name, command.summary) for name, command in commands.items()])
    parts += listing("options of every command", [(shown_option(each), each.doc) for each in GLOBAL_OPTIONS])
    last = "`ctrl-exec help COMMAND` explains one of them. Options may stand anywhere before `--`."
    parts += ["", *wrapped(last, WIDTH)]
    return "\n".join(parts) + "\n"


COMMANDS = {
    "help": Command(
        summary="list the commands, or explain one",
        execute=execute,
        arguments=(Argument("COMMAND", "the command to explain", 0, 1, "command"),),
        exit_codes=(0, 2),
    )
}
