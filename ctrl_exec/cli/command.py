"""What a command of `ctrl-exec` is: words, options, a function.

Owns the types that command modules are written with, and the options that every command takes.
The same values drive the parser, `--help`, the man pages and the shell completion, so a command
cannot have an option that one of them does not know. Must not import anything slow: `--version`
and every other command start through here.
"""

from __future__ import annotations

from ctrl_exec.common.value import field, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context


@value
class Option:
    """One option: its spellings, the word that stands for its value, what it does.

    The last of `names` is the long one; commands ask for it without its dashes. Without a
    `metavar` the option is a flag. `completes` names what a shell may offer for the value:
    `agent`, `script`, `reqid`, `request`, `file`, an object of the task layer (`task`, `user`) or nothing.
    """

    names: tuple[str, ...]
    doc: str
    metavar: str = ""
    is_repeated: bool = False
    choices: tuple[str, ...] = ()
    completes: str = ""

    @property
    def key(self) -> str:
        """The name that commands ask for: `("-t", "--tag")` gives `tag`."""
        return self.names[-1].lstrip("-")


@value
class Argument:
    """One place of the command line: `HOST`, how many words it takes, what a shell may offer."""

    name: str
    doc: str
    minimum: int = 1
    maximum: int | None = 1
    completes: str = ""
    choices: tuple[str, ...] = ()


@value
class Action:
    """What the first word of a command may be, and the words after it.

    `shape` names them as they are typed: `PROJECT USER ROLE`, `[TASK]`, `TEAM USER...`. What a shell offers
    for a place follows from its name.
    """

    name: str
    shape: str
    doc: str


def action_places(actions: tuple[Action, ...]) -> tuple[Argument, Argument]:
    """The places of a command that has actions."""
    what = Argument("ACTION", "what to do", choices=tuple(each.name for each in actions))
    return what, Argument("WORD", "what the action takes", 0, None)


@value
class Command:
    """One command: its one-line summary, what it takes, the function that does it.

    `execute` gets the context and the parsed words and gives the exit code. A command that
    `stays_root` signs or checks (core §3); every other one becomes the service user. `takes_rest` allows
    words after `--` that are passed on as they are.
    """

    summary: str
    execute: Callable[[Context, Arguments], int]
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    actions: tuple[Action, ...] = ()
    description: str = ""
    examples: tuple[str, ...] = ()
    stays_root: bool = False
    takes_rest: bool = False
    exit_codes: tuple[int, ...] = field(default=(0, 1, 2))


GLOBAL_OPTIONS = (
    Option(
        ("--config",),
        "the configuration file (default: /etc/ctrl-exec/ctrl-exec.conf)",
        "FILE",
        completes="file",
    ),
    Option(("--json",), "print one JSON document and nothing else"),
    Option(("-q", "--quiet"), "print results and errors only"),
    Option(("--no-color",), "no colours (NO_COLOR in the environment does the same)"),
    Option(("-v", "--verbose"), "show the log lines and, with the daemon or without, the way taken"),
    Option(("--version",), "print the version and exit"),
    Option(("-h", "--help"), "print help and exit"),
)

CREDENTIAL_OPTIONS = (
    Option(("--username",), "the name given to the auth hook (default: $USER)", "NAME"),
    Option(
        ("--token-file",), "a file whose first line is the token for the auth hook", "FILE", completes="file"
    ),
    Option(
        ("--token",),
        "the token itself; others can see it in ps: prefer ENVEXEC_TOKEN or --token-file",
        "TOKEN",
    ),
)

TARGET_OPTIONS = (
    Option(("--all",), "every agent of the registry"),
    Option(
        ("-t", "--tag"),
        "agents whose registry tag has this value; again for more",
        "TAG=VALUE",
        is_repeated=True,
    ),
    Option(("-x", "--exclude"), "leave this agent out", "NAME", is_repeated=True, completes="agent"),
)

PORT_OPTION = Option(("--port",), "the agents' port, instead of the one in the registry", "PORT")
TIMEOUT_OPTION = Option(("--timeout",), "give up after this long: seconds, or 30s, 10m, 2h", "SECONDS")

# What may also stand before the command's name.
SHARED_OPTIONS = (*GLOBAL_OPTIONS, *CREDENTIAL_OPTIONS, *TARGET_OPTIONS, PORT_OPTION, TIMEOUT_OPTION)
