"""Write what is derived from the code: example files, the configuration reference, the man pages.

`make generate` runs it; with `--check` it writes nothing and fails when a file is out of date. It
lives outside the packages because it knows both sides, which no module of ours may.
"""

from __future__ import annotations

import functools
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "agent")]

from ctrl_exec import __version__, config  # noqa: E402
from ctrl_exec.cli import help as help_pages  # noqa: E402
from ctrl_exec.cli.command import GLOBAL_OPTIONS  # noqa: E402
from ctrl_exec.cli.main import MODULES, load_command  # noqa: E402
from ctrl_exec.common.settings import key_of  # noqa: E402
from ctrl_exec.common.value import fields  # noqa: E402
from ctrl_exec_agent import config as agent_config  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ctrl_exec.cli.command import Command

REFERENCE_HEAD = """\
# Configuration

Made from the code by `make generate`; do not edit by hand.

Both sides read `key = value` files. A line that begins with `#` is a comment; lists are separated by
commas (`script_dirs` by colons); durations take a unit (`90s`, `5m`, `24h`, `30d`), sizes too (`10M`).
An unknown key, a bad value or two settings that contradict each other stop the program with exit code
78 (the command line: 2) and a message that names file, line and what was expected.
`ctrl-exec check-config` and `ctrl-exec-agent self-check` say the same without starting anything.

The daemons read their file again on SIGHUP. A wrong file is logged then, and the old settings stay.

Everything hangs off two roots, `etc_dir` and `state_dir`: an instance with its own roots and ports
needs no root and touches nothing of the system. The command line takes its file from `--config`, else
from the variable `CTRL_EXEC_CONFIG`, else `/etc/ctrl-exec/ctrl-exec.conf`.
"""

AGENT_SECTIONS = """\

### Section `[tags]`

Each `key = value` line is reported to the dispatcher by discovery. Tags used in host patterns
(`@role=web`) are those of the registry, taken at approval and changed with `edit-agent --tags`.

### Sections `[profile NAME]`

Whom a script runs as. An entry of `scripts.conf` names a profile with `profile=NAME`.

| key | default | expected | meaning |
|---|---|---|---|
"""

SCRIPTS = """\

## The agent: scripts.conf

One script a line, `name = /absolute/path [profile=NAME] [timeout=SECONDS] [lock=no]`. The name has
letters, digits, `_` and `-`, at most 64. A duplicate or a bad line refuses the whole file.

| word | meaning |
|---|---|
| `timeout=SECONDS` | end the script after this long, whatever the caller asked |
| `lock=no` | let several runs of the script overlap on this host |
| `profile=NAME` | run it as `[profile NAME]` of agent.conf says |
"""


def table(cls: type) -> str:
    """Give the reference table of a settings class."""
    rows = [reference_row(each) for each in fields(cls) if each.kind is not None]
    return "\n".join(["| key | default | expected | meaning |", "|---|---|---|---|", *rows]) + "\n"


def reference_row(each: object) -> str:
    """Give one key's row of the reference."""
    found = each.initial() if not each.is_required else None  # type: ignore[attr-defined]  # a Field
    shown = "" if found in (None, "", ()) else f"`{each.kind.show(found)}`"  # type: ignore[attr-defined]
    cells = (f"`{key_of(each)}`", shown, each.kind.expected, each.doc)  # type: ignore[attr-defined]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def reference() -> str:
    """Give docs/configuration.md."""
    clashes = "".join(f"- {words}\n" for _, _, words in config.CONTRADICTIONS)
    profile = "\n".join(reference_row(each) for each in fields(agent_config.Profile) if each.kind is not None)
    return (
        f"{REFERENCE_HEAD}\n## The dispatcher: ctrl-exec.conf\n\n{table(config.Config)}"
        f"\nRefused together:\n\n{clashes}"
        f"\n## The agent: agent.conf\n\n{table(agent_config.AgentConfig)}"
        f"{AGENT_SECTIONS}{profile}\n{SCRIPTS}"
    )


def roff(text: str) -> str:
    """Give text as roff takes it: backslashes, leading dots and dashes made plain."""
    shown = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in shown.split("\n"))


def page(name: str, section: int, summary: str, parts: Sequence[tuple[str, str]]) -> str:
    """Give one man page."""
    head = f'.TH {name.upper()} {section} "" "ctrl-exec {__version__}" "ctrl-exec"\n.nh\n.ad l\n'
    head += f".SH NAME\n{roff(name)} \\- {roff(summary)}\n"
    return head + "".join(f".SH {title}\n{text.rstrip()}\n" for title, text in parts)


def tagged(rows: Sequence[tuple[str, str]]) -> str:
    """Give a list of terms with their meanings."""
    return "".join(f".TP\n.B {roff(term)}\n{roff(meaning)}\n" for term, meaning in rows)


def preformatted(lines: Sequence[str]) -> str:
    """Give lines that keep their shape."""
    return ".nf\n" + "".join(f"{roff(line)}\n" for line in lines) + ".fi\n"


def option_rows(options: Sequence[object]) -> list[tuple[str, str]]:
    """Give options as terms with meanings."""
    return [(help_pages.shown_option(each), help_pages.sentence(each.doc)) for each in options]  # type: ignore[arg-type, attr-defined]


def command_page(name: str, command: Command) -> str:
    """Give the man page of one command, `ctrl-exec-run(1)`."""
    description = help_pages.sentence(command.summary)
    if command.description:
        description += "\n.PP\n" + "\n.PP\n".join(
            roff(part) for part in command.description.split("\n") if part
        )
    parts = [("SYNOPSIS", f".B {roff(help_pages.usage(name, command))}"), ("DESCRIPTION", description)]
    if command.actions:
        rows = [help_pages.shown_action(each) for each in command.actions]
        parts.append(("ACTIONS", tagged([(words, help_pages.sentence(doc)) for words, doc in rows])))
    elif command.arguments:
        rows = [
            (help_pages.shown_argument(each), help_pages.sentence(each.doc)) for each in command.arguments
        ]
        parts.append(("ARGUMENTS", tagged(rows)))
    parts.append(("OPTIONS", tagged(option_rows(command.options + GLOBAL_OPTIONS))))
    codes = [(str(code), help_pages.sentence(help_pages.EXIT_CODES[code])) for code in command.exit_codes]
    parts.append(("EXIT STATUS", tagged(codes)))
    if command.examples:
        parts.append(("EXAMPLES", preformatted(command.examples)))
    parts.append(("SEE ALSO", roff("ctrl-exec(1), ctrl-exec.conf(5)")))
    return page(f"ctrl-exec-{name}", 1, command.summary, parts)


def program_page() -> str:
    """Give ctrl-exec(1)."""
    commands = {name: load_command(name) for name in MODULES}
    rows = [(f"ctrl-exec-{name}(1)", help_pages.sentence(each.summary)) for name, each in commands.items()]
    environment = [
        ("CTRL_EXEC_CONFIG", "The configuration file, where --config is not given."),
        ("ENVEXEC_TOKEN", "The token for the auth hook, where neither --token-file nor --token is given."),
        ("NO_COLOR", "Set to anything: no colours."),
    ]
    codes = [(str(code), help_pages.sentence(text)) for code, text in help_pages.EXIT_CODES.items()]
    about = (
        "The command line of the dispatcher. It pairs hosts that run ctrl-exec-agent, and runs on them the "
        "scripts that their own allowlists name, over mutual TLS.\n.PP\nResults go to standard output, "
        "messages and progress to standard error. With \\-\\-json every command prints one JSON document, "
        "also for errors."
    )
    parts = [
        ("SYNOPSIS", ".B ctrl\\-exec\n.I COMMAND\n[WORD]... [OPTION]... [\\-\\- ARG...]"),
        ("DESCRIPTION", about),
        ("COMMANDS", tagged(rows)),
        ("OPTIONS", tagged(option_rows(GLOBAL_OPTIONS))),
        ("ENVIRONMENT", tagged(environment)),
        ("EXIT STATUS", tagged(codes)),
        ("FILES", tagged([(config.DEFAULT_PATH, "The settings, ctrl-exec.conf(5).")])),
        ("SEE ALSO", roff(", ".join(SEE_ALSO))),
    ]
    return page("ctrl-exec", 1, "run allow-listed scripts on a fleet of agents over mutual TLS", parts)


def settings_page(name: str, cls: type, path: str) -> str:
    """Give the man page of a settings file."""
    rows = []
    for each in fields(cls):
        if each.kind is not None:
            initial = each.initial()
            default = "" if initial in (None, "", ()) else f" Default: {each.kind.show(initial)}."
            rows.append((key_of(each), f"{each.doc} Expected: {each.kind.expected}.{default}"))
    about = (
        "Lines of the form key = value; a line that begins with # is a comment. A mistake stops the program."
    )
    parts = [("SYNOPSIS", roff(path)), ("DESCRIPTION", about), ("KEYS", tagged(rows))]
    return page(name, 5, "settings of " + ("the agent" if "agent" in name else "the dispatcher"), parts)


def daemon_page(name: str, summary: str, about: str) -> str:
    """Give the man page of a daemon."""
    signals = [
        ("SIGTERM", "Stop: what is running is finished or handed over."),
        ("SIGHUP", "Read the settings again."),
    ]
    parts = [
        ("SYNOPSIS", f".B {roff(name)}\n[\\-\\-config FILE]"),
        ("DESCRIPTION", roff(about)),
        ("SIGNALS", tagged(signals)),
        ("EXIT STATUS", tagged([("0", "It was told to stop."), ("78", "The configuration is wrong.")])),
        ("SEE ALSO", roff("ctrl-exec(1), ctrl-exec.conf(5)")),
    ]
    return page(name, 8, summary, parts)


def agent_page() -> str:
    """Give ctrl-exec-agent(8)."""
    rows = [
        ("serve", "Listen for dispatchers and run scripts; what the service unit starts."),
        ("request-pairing --dispatcher HOST", "Make a key and ask a dispatcher for a certificate."),
        ("pairing-status", "Say whether this host is paired, with whom, until when."),
        ("self-check", "Check settings, allowlist, certificates and permissions."),
        ("self-ping", "Connect to the running agent with its own certificate."),
        ("run-local SCRIPT", "Run a script as a dispatcher would, and show what it would get."),
    ]
    about = "The agent of a managed host. It runs only scripts that scripts.conf names, without a shell."
    parts = [
        ("SYNOPSIS", ".B ctrl\\-exec\\-agent\n[\\-\\-config FILE] COMMAND"),
        ("DESCRIPTION", about),
        ("COMMANDS", tagged(rows)),
        (
            "EXIT STATUS",
            tagged([("0", "Success."), ("1", "Failure."), ("2", "Usage."), ("78", "Configuration.")]),
        ),
        (
            "FILES",
            tagged(
                [
                    ("/etc/ctrl-exec-agent/agent.conf", "Settings."),
                    ("/etc/ctrl-exec-agent/scripts.conf", "The allowlist."),
                ]
            ),
        ),
        ("SEE ALSO", roff("agent.conf(5), ctrl-exec(1)")),
    ]
    return page("ctrl-exec-agent", 8, "run allow-listed scripts for a trusted dispatcher", parts)


def local_page() -> str:
    """Give ctrl-exec-local(8)."""
    about = (
        "Executes the local commands of tasks as a user of their own, who can read neither the settings nor "
        "the state of ctrl-exec. The scheduler asks for each over a Unix socket that is its alone. It has no "
        "configuration file."
    )
    options = [
        (
            "--socket FILE",
            "Where to listen, if systemd hands over no socket; local_socket of ctrl-exec.conf.",
        ),
        ("--as USER", "Whom commands run as, local_user of ctrl-exec.conf; needed where root starts it."),
        ("--for USER", "Who may have commands executed, besides root. Default: ctrl-exec."),
    ]
    signals = [("SIGTERM", "Stop. Commands go on, and how they end is still said.")]
    parts = [
        ("SYNOPSIS", ".B ctrl\\-exec\\-local\n[\\-\\-socket FILE] [\\-\\-as USER] [\\-\\-for USER]"),
        ("DESCRIPTION", roff(about)),
        ("OPTIONS", tagged(options)),
        ("SIGNALS", tagged(signals)),
        ("EXIT STATUS", tagged([("0", "It was told to stop."), ("78", "It was started wrongly.")])),
        ("FILES", tagged([(config.DEFAULT_LOCAL_SOCKET, "The socket of the system's instance.")])),
        ("SEE ALSO", roff("ctrl-exec-scheduler(8), ctrl-exec.conf(5), systemd.socket(5)")),
    ]
    return page("ctrl-exec-local", 8, "run local commands of tasks", parts)


DAEMONS = ("api", "scheduler", "local", "agent")
SEE_ALSO = ("ctrl-exec.conf(5)", *(f"ctrl-exec-{each}(8)" for each in DAEMONS))
API_ABOUT = "The HTTP API of the dispatcher. It serves what the command line does, with JSON, on api_port."
SCHEDULER_ABOUT = "The clock of the dispatcher: it purges old records and takes over runs whose carrier died."


def outputs() -> dict[str, Callable[[], str]]:
    """Give every derived file with what makes its text."""
    dispatcher, agent = config.Config, agent_config.AgentConfig
    found: dict[str, Callable[[], str]] = {
        "etc/ctrl-exec.conf.example": config.render_example,
        "etc/agent.conf.example": agent_config.render_agent_example,
        "docs/configuration.md": reference,
        "etc/man/ctrl-exec.1": program_page,
        "etc/man/ctrl-exec.conf.5": lambda: settings_page("ctrl-exec.conf", dispatcher, config.DEFAULT_PATH),
        "etc/man/agent.conf.5": lambda: settings_page("agent.conf", agent, agent_config.DEFAULT_PATH),
        "etc/man/ctrl-exec-agent.8": agent_page,
        "etc/man/ctrl-exec-api.8": lambda: daemon_page("ctrl-exec-api", "HTTP API of ctrl-exec", API_ABOUT),
        "etc/man/ctrl-exec-local.8": local_page,
        "etc/man/ctrl-exec-scheduler.8": lambda: daemon_page(
            "ctrl-exec-scheduler", "clock of ctrl-exec", SCHEDULER_ABOUT
        ),
    }
    for name in MODULES:
        found[f"etc/man/ctrl-exec-{name}.1"] = functools.partial(named_page, name)
    return found


def named_page(name: str) -> str:
    """Give the man page of a command."""
    return command_page(name, load_command(name))


def read(path: str) -> str:
    """Give the text of a file, empty if there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def main(words: Sequence[str]) -> int:
    """Write every file that differs, or with `--check` name it."""
    changed = []
    for name, make in outputs().items():
        path = os.path.join(ROOT, name)
        text = make()
        if read(path) == text:
            continue
        changed.append(name)
        if "--check" not in words:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(text)
    sys.stdout.write("".join(f"{name}\n" for name in changed))
    return 1 if changed and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
