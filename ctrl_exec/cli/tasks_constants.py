"""`ctrl-exec constant`: named values of a project, and its secrets, which are written and never shown."""

from __future__ import annotations

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, Option, action_places
from ctrl_exec.cli.tasks_context import TaskContext, open_tasks, read_secret
from ctrl_exec.common.errors import NotFoundError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context

ACTIONS = (
    Action("set", "PROJECT NAME [VALUE]", "give a constant a value, with --secret a secret"),
    Action("list", "PROJECT", "a project's constants, and the names of its secrets"),
    Action("remove", "PROJECT NAME", "forget a constant, with --secret a secret"),
)


def execute_constant(context: Context, arguments: Arguments) -> int:
    """Set, list or remove."""
    action, words = arguments.words[0], arguments.words[1:]
    is_secret = arguments.flag("secret")
    if is_secret and len(words) > 2:
        raise UsageError("a secret on the command line is seen by others: use --value-file, or type it")
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_constants(tasks, words[0])
        if action == "remove":
            remove = remove_secret if is_secret else remove_constant
            return remove(tasks, words[0], words[1])
        if is_secret:
            return set_secret(tasks, words[0], words[1], arguments)
        return set_constant(tasks, arguments)


def set_constant(tasks: TaskContext, arguments: Arguments) -> int:
    """Add a constant, or give a known one another value."""
    from ctrl_exec.tasks import constants

    project_id, name = arguments.words[1:3]
    path = arguments.text("value-file")
    if (path is None) == (len(arguments.words) == 3):
        raise UsageError("a constant takes a VALUE or --value-file, and not both")
    content = arguments.words[3] if path is None else tasks.context.first_line(path, "--value-file")
    known = constants.list_constants(tasks.store, tasks.identity, project_id)
    current = next((each for each in known if each.name == name), None)
    draft = constants.decode_constant({"name": name, "value": content}, current)
    saved = constants.save_constant(tasks.store, tasks.identity, project_id, draft)
    return tasks.say(constants.encode_constant(saved), f"{saved.name} = {saved.content}")


def set_secret(tasks: TaskContext, project_id: str, name: str, arguments: Arguments) -> int:
    """Add a secret, or give a known one another value."""
    from ctrl_exec.common.value import replace
    from ctrl_exec.tasks import project_secrets

    known = project_secrets.list_secrets(tasks.store, tasks.identity, project_id)
    current = next((each for each in known if each.name == name), None)
    content = read_secret(tasks, arguments.text("value-file"), "value")
    draft, content = project_secrets.decode_secret({"name": name, "value": content}, current)
    draft = replace(draft, project_id=project_id)
    saved = project_secrets.save_secret(tasks.store, tasks.identity, tasks.sealer, draft, content)
    return tasks.say(project_secrets.encode_secret(saved), f"{saved.name} is set")


def list_constants(tasks: TaskContext, project_id: str) -> int:
    """Show constants with their values, and secrets without."""
    from ctrl_exec.tasks.constants import encode_constant
    from ctrl_exec.tasks.constants import list_constants as read
    from ctrl_exec.tasks.project_secrets import encode_secret, list_secrets

    constants = read(tasks.store, tasks.identity, project_id)
    secrets = list_secrets(tasks.store, tasks.identity, project_id)
    document = {
        "ok": True,
        "constants": [encode_constant(each) for each in constants],
        "secrets": [encode_secret(each) for each in secrets],
    }
    rows = [
        *((each.name, f"CPC_{each.name}", each.content) for each in constants),
        *((each.name, f"CPS_{each.name}", "(secret)") for each in secrets),
    ]
    tasks.output.answer(document, lambda: tasks.output.table(("NAME", "VARIABLE", "VALUE"), rows))
    return 0


def remove_constant(tasks: TaskContext, project_id: str, name: str) -> int:
    """Forget a constant that no template names."""
    from ctrl_exec.tasks import constants

    known = constants.list_constants(tasks.store, tasks.identity, project_id)
    found = _named({each.name: each.constant_id for each in known}, name, "constant", project_id)
    constants.remove_constant(tasks.store, tasks.identity, project_id, found)
    return tasks.say({"removed": name}, f"removed {name}")


def remove_secret(tasks: TaskContext, project_id: str, name: str) -> int:
    """Forget a secret."""
    from ctrl_exec.tasks import project_secrets

    known = project_secrets.list_secrets(tasks.store, tasks.identity, project_id)
    found = _named({each.name: each.secret_id for each in known}, name, "secret", project_id)
    project_secrets.remove_secret(tasks.store, tasks.identity, project_id, found)
    return tasks.say({"removed": name}, f"removed {name}")


def _named(ids: dict[str, str], name: str, what: str, project_id: str) -> str:
    """The id of that name. Raises: NotFoundError."""
    if name not in ids:
        raise NotFoundError(f"no {what} {name!r}; `ctrl-exec constant list {project_id}` shows them")
    return ids[name]


COMMANDS = {
    "constant": Command(
        "set, list and remove the constants and secrets of a project",
        execute_constant,
        arguments=action_places(ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--secret",), "set, remove: a secret: it is kept encrypted and never shown again"),
            Option(("--value-file",), "set: a file whose first line is the value", "FILE", completes="file"),
        ),
        actions=ACTIONS,
        description=(
            "Commands find a constant as CPC_NAME, a secret as CPS_NAME; {{NAME}} in a task stands for a"
            " constant. A secret is typed, read from --value-file or from standard input."
        ),
        examples=(
            "ctrl-exec constant set my-awesome-project SITE eu-west",
            "ctrl-exec constant set my-awesome-project API_KEY --secret --value-file key",
        ),
    ),
}
