"""`ctrl-exec completion`: scripts for bash, zsh and fish, and the words they ask for.

The shell scripts are thin: at each Tab they call `ctrl-exec completion words`, which answers from
the command table and from files (the registry and what agents last reported), never from the
network. A configuration or registry that cannot be read means fewer words, never an error.
"""

from __future__ import annotations

import os

from ctrl_exec.cli.command import GLOBAL_OPTIONS, SHARED_OPTIONS, Argument, Command
from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.common.names import AGENT_NAME, REQID, SCRIPT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.command import Option
    from ctrl_exec.cli.context import Context
    from ctrl_exec.config import Config

SHELLS = ("bash", "zsh", "fish")
MAX_WORDS = 2000
MAX_CONTACTS = 500

BASH = """\
# bash completion for ctrl-exec; load it with: source <(ctrl-exec completion bash)
_ctrl_exec() {
    local IFS=$'\\n'
    local words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    # bash cuts words at = and :; what stands before the cut must not be repeated
    local current=${COMP_WORDS[COMP_CWORD]} word
    local found=$(command ctrl-exec completion words -- "${words[@]}" 2>/dev/null)
    COMPREPLY=()
    if [[ $found == @files ]]; then
        COMPREPLY=($(compgen -f -- "$current"))
        return
    fi
    # not compgen -W: it would expand what stands in a word
    while read -r word; do
        # names of tasks may hold blanks, which are typed as "\\ "
        printf -v word %q "$word"
        [[ $word != "''" && $word == "$current"* ]] && COMPREPLY+=("$word")
    done <<< "$found"
}
complete -F _ctrl_exec ctrl-exec ced
"""

ZSH = """\
#compdef ctrl-exec ced
# zsh completion for ctrl-exec; load it with: source <(ctrl-exec completion zsh)
_ctrl_exec() {
    local -a found
    found=("${(@f)$(command ctrl-exec completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ "${found[1]}" == "@files" ]]; then
        _files
    else
        compadd -- "${found[@]}"
    fi
}
(( $+functions[compdef] )) && compdef _ctrl_exec ctrl-exec ced
"""

FISH = """\
# fish completion for ctrl-exec; load it with: ctrl-exec completion fish | source
function __ctrl_exec_words
    set -l typed (commandline -opc)
    set -l found (command ctrl-exec completion words -- $typed[2..-1] (commandline -ct) 2>/dev/null)
    if test "$found[1]" = @files
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c ctrl-exec -f -a '(__ctrl_exec_words)'
complete -c ced -f -a '(__ctrl_exec_words)'
"""

TEXTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
FILES = "@files"


def execute(context: Context, arguments: Arguments) -> int:
    """Print a shell's script, or the words that may stand at the end of a command line."""
    what = arguments.words[0]
    if what == "words":
        found = words_for(list(arguments.rest), lambda: readable_config(context, arguments.rest))
        context.output.answer(
            {"ok": True, "words": found}, lambda: context.output.raw("".join(f"{word}\n" for word in found))
        )
    else:
        document = {"ok": True, "shell": what, "script": TEXTS[what]}
        context.output.answer(document, lambda: context.output.raw(TEXTS[what]))
    return 0


def readable_config(context: Context, typed: Sequence[str]) -> Config | None:
    """Give the settings, those of a typed `--config` where there is one; nothing if unreadable."""
    from ctrl_exec.cli.context import Context as Surroundings

    path = next((typed[at + 1] for at, word in enumerate(typed[:-1]) if word == "--config"), "")
    path = path or next((word[9:] for word in typed if word.startswith("--config=")), "")
    if path:
        context = Surroundings(context.output, context.stdin, context.environment, config_path=path)
    try:
        return context.config
    except CtrlExecError:
        return None


def words_for(typed: list[str], load: Callable[[], Config | None]) -> list[str]:
    """Give what may stand in the place of the last word typed, sorted, without what does not fit it."""
    from ctrl_exec.cli.arguments import option_table
    from ctrl_exec.cli.main import MODULES, load_command

    # zsh and bash give what is typed with its backslashes: `My\ aw`
    current = typed.pop().replace("\\", "") if typed else ""
    if "--" in typed:
        return []
    table = option_table(SHARED_OPTIONS)
    name = next((word for at, word in enumerate(typed) if is_command(typed, at, table, MODULES)), "")
    command = load_command(name) if name else None
    options = SHARED_OPTIONS if command is None else command.options + GLOBAL_OPTIONS
    table = option_table(options)
    wanted = table.get(typed[-1]) if typed else None
    if wanted is not None and wanted.metavar:
        return fitting(wanted.choices or offered(wanted.completes, load), current)
    if current.startswith("-"):
        return fitting((spelling for option in options for spelling in option.names), current)
    if command is None:
        return fitting(MODULES, current)
    return fitting(argument_words(command, placed(typed, name, table), load), current)


def is_command(typed: Sequence[str], at: int, table: dict[str, Option], modules: Iterable[str]) -> bool:
    """Say whether the word at this place is the command's name and not the value of an option."""
    before = table.get(typed[at - 1]) if at else None
    return typed[at] in modules and not (before is not None and before.metavar)


def placed(typed: Sequence[str], name: str, table: dict[str, Option]) -> list[str]:
    """Give the words typed that fill places: neither options nor their values nor the command."""
    found: list[str] = []
    is_value = False
    for word in typed:
        option = table.get(word)
        if not is_value and not word.startswith("-"):
            found.append(word)
        is_value = not is_value and option is not None and bool(option.metavar)
    if name in found:
        found.remove(name)
    return found


def argument_words(command: Command, before: Sequence[str], load: Callable[[], Config | None]) -> list[str]:
    """Give what may stand in the next place of a command, after these words."""
    found: list[str] = []
    action = next((each for each in command.actions if before and each.name == before[0]), None)
    if action is not None:
        return list(offered(place_of(action.shape.split(), len(before) - 1), load))
    for argument in open_places(command.arguments, len(before)):
        found += argument.choices or offered(argument.completes, load)
    used = set(before)
    return [word for word in found if word not in used]


def place_of(places: Sequence[str], filled: int) -> str:
    """Give what an action takes in its next place, as `offered` knows it; empty where it takes no more."""
    if filled >= len(places):
        if not places or "..." not in places[-1]:
            return ""
        filled = len(places) - 1
    return places[filled].strip("[].").lower()


def open_places(arguments: Sequence[Argument], filled: int) -> list[Argument]:
    """Give the arguments that the next word can belong to; one that repeats leaves those after it open."""
    for at, argument in enumerate(arguments):
        if argument.maximum is None:
            return list(arguments[at:])
        if filled < argument.maximum:
            return [argument]
        filled -= argument.maximum
    return []


def fitting(words: Iterable[str], current: str) -> list[str]:
    """Give the words that begin with what is typed; the mark for files always fits."""
    found = sorted({word for word in words if word.startswith(current) or word == FILES})
    return found[:MAX_WORDS]


def offered(what: str, load: Callable[[], Config | None]) -> list[str]:
    """Give the live words of a kind: agents, scripts, request ids, or the mark for file names."""
    if what == "file":
        return [FILES]
    if what == "command":
        from ctrl_exec.cli.main import MODULES

        return list(MODULES)
    if what == "role":
        return ["MANAGER", "ADVANCED_EXECUTOR", "EXECUTOR", "VIEWER", "none"]
    read = READERS.get(what)
    if read is None and what not in NAMES:
        return []
    config = load()
    if config is None:
        return []
    return task_layer_names(config, NAMES[what]) if read is None else read(config)


def agent_names(config: Config) -> list[str]:
    """Give the registered names, read off the directory."""
    return [name for name in stems(config.agents_dir) if AGENT_NAME.fullmatch(name)]


def script_names(config: Config) -> list[str]:
    """Give the scripts that agents reported when they were last heard of.

    The service user writes these files, and root presses Tab: what is no script name is left out.
    """
    from ctrl_exec.common.files import read_json

    found: set[str] = set()
    for name in stems(config.contacts_dir)[:MAX_CONTACTS]:
        try:
            contact = read_json(f"{config.contacts_dir}/{name}.json")
        except CtrlExecError:
            continue
        scripts = contact.get("scripts") if isinstance(contact, dict) else None
        for each in scripts if isinstance(scripts, list) else ():
            script = each.get("name") if isinstance(each, dict) else each
            if isinstance(script, str):
                found.add(script)
    for host in listing(config.locks_dir):
        found.update(listing(f"{config.locks_dir}/{host}"))
    return sorted(name for name in found if SCRIPT.fullmatch(name))


def run_ids(config: Config) -> list[str]:
    """Give the request ids of the records."""
    return [stem for stem in stems(config.runs_dir) if REQID.fullmatch(stem)]


def request_ids(config: Config) -> list[str]:
    """Give the pairing requests that wait, by id and by host name."""
    from ctrl_exec.common.files import read_json

    found: list[str] = []
    for stem in stems(f"{config.pairing_dir}/requests"):
        if not REQID.fullmatch(stem):
            continue
        found.append(stem)
        try:
            request = read_json(f"{config.pairing_dir}/requests/{stem}.json")
        except CtrlExecError:
            continue
        name = request.get("hostname") if isinstance(request, dict) else None
        if isinstance(name, str) and AGENT_NAME.fullmatch(name):
            found.append(name)
    return found


def task_layer_names(config: Config, sql: str) -> list[str]:
    """Give names or ids from the task layer's database; nothing where there is none."""
    from ctrl_exec.tasks.store import Store

    if not os.path.exists(config.tasks_db_path):
        return []
    try:
        with Store(config.tasks_db_path) as store:
            found = [str(row[0]) for row in store.rows(sql, (MAX_WORDS,))]
    except CtrlExecError:
        return []
    return [name for name in found if name.isprintable()]


def stems(directory: str) -> list[str]:
    """Give the names of a directory's JSON files without their ending."""
    return [name[:-5] for name in listing(directory) if name.endswith(".json") and not name.startswith(".")]


def listing(directory: str) -> list[str]:
    """Give the names in a directory, none where it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


READERS: dict[str, Callable[[Config], list[str]]] = {
    "agent": agent_names,
    "script": script_names,
    "reqid": run_ids,
    "request": request_ids,
}

# newest first where there may be more than a shell wants to offer
NAMES = {
    "project": "SELECT project_id FROM projects LIMIT ?",
    "task": "SELECT name FROM tasks LIMIT ?",
    "user": "SELECT name FROM users LIMIT ?",
    "team": "SELECT name FROM teams LIMIT ?",
    "notifier": "SELECT name FROM notifiers LIMIT ?",
    "webhook": "SELECT name FROM webhooks LIMIT ?",
    "token": "SELECT token_id FROM tokens WHERE kind = 'personal' AND revoked_ns IS NULL LIMIT ?",
    "execution": "SELECT execution_id FROM executions ORDER BY execution_id DESC LIMIT MIN(?, 50)",
}

COMMANDS = {
    "completion": Command(
        summary="print the completion script of a shell",
        execute=execute,
        arguments=(
            Argument(
                "SHELL", "bash, zsh or fish; `words` is what these scripts ask", choices=(*SHELLS, "words")
            ),
        ),
        description="Offers commands, options, host and script names. The names come from files, not agents.",
        examples=("source <(ctrl-exec completion bash)", "ctrl-exec completion fish | source"),
        takes_rest=True,
        exit_codes=(0, 2),
    )
}
