"""`ctrl-exec notifier`: where news of executions go."""

from __future__ import annotations

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, Option, action_places
from ctrl_exec.cli.tasks_context import TaskContext, only_one, open_tasks, read_secret
from ctrl_exec.common.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.tasks.models import Notifier

    Found = tuple[Notifier, bool]

KINDS = ("EMAIL", "SLACK", "MATTERMOST", "DISCORD", "TEAMS", "NTFY", "WEBHOOK")
ACTIONS = (
    Action("create", "NAME", "a new one of --project and --kind; prints its id"),
    Action("list", "", "all of them, or those of --project"),
    Action("show", "NOTIFIER", "one as the API gives it"),
    Action("edit", "NOTIFIER", "change what the options say"),
    Action("enable", "NOTIFIER", "have it told again"),
    Action("disable", "NOTIFIER", "have it told nothing"),
    Action("test", "NOTIFIER", "send a test now and say what came of it"),
    Action("remove", "NOTIFIER", "forget it; no task may name it"),
)
_PAGE = 500


def execute_notifier(context: Context, arguments: Arguments) -> int:
    """Do one of the actions."""
    action, words = arguments.words[0], arguments.words[1:]
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_notifiers(tasks, arguments)
        if action == "create":
            return create_notifier(tasks, arguments)
        found = notifier_named(tasks, words[0], arguments.text("project"))
        if action == "show":
            return tasks.show(encoded(found))
        if action == "test":
            return try_out(tasks, found[0])
        if action == "remove":
            from ctrl_exec.tasks.notification.notifiers import remove_notifier

            remove_notifier(tasks.store, tasks.identity, found[0].notifier_id)
            return tasks.say({"removed": found[0].notifier_id}, f"removed {found[0].name}")
        return change_notifier(tasks, found[0], action, arguments)


def create_notifier(tasks: TaskContext, arguments: Arguments) -> int:
    """Make one and print its id."""
    project, kind = arguments.text("project"), arguments.text("kind")
    if project is None or kind is None:
        raise UsageError("notifier create needs --project ID and --kind KIND")
    wanted = {"name": arguments.words[1], "projectId": project, "kind": kind}
    found = _save(tasks, wanted | described(tasks, arguments), None)
    return tasks.say(encoded(found), found[0].notifier_id)


def described(tasks: TaskContext, arguments: Arguments) -> dict[str, Any]:
    """What the options say of a notifier, as the API takes it."""
    found: dict[str, Any] = {}
    name, addresses, url = arguments.text("name"), arguments.many("to"), arguments.text("url")
    if name is not None:
        found["name"] = name
    if addresses or url is not None:
        found["settings"] = ({"to": list(addresses)} if addresses else {}) | ({"url": url} if url else {})
    path = arguments.text("secret-file")
    if path is not None:
        found["secret"] = read_secret(tasks, path, "--secret-file")
    return found


def change_notifier(tasks: TaskContext, current: Notifier, action: str, arguments: Arguments) -> int:
    """Change what the options say, or switch it."""
    changes = described(tasks, arguments) if action == "edit" else {"enabledFg": action == "enable"}
    if not changes:
        raise UsageError("nothing to change: give --name, --to, --url or --secret-file")
    found = _save(tasks, changes, current)
    return tasks.say(encoded(found), f"{action}: {found[0].name}")


def _save(tasks: TaskContext, wanted: dict[str, Any], current: Notifier | None) -> Found:
    from ctrl_exec.tasks.notification.notifiers import decode_notifier, save_notifier

    draft, secret = decode_notifier(wanted, current)
    return save_notifier(tasks.store, tasks.identity, tasks.sealer, draft, secret)


def try_out(tasks: TaskContext, notifier: Notifier) -> int:
    """Send a test; exit code 1 if it was not taken."""
    from ctrl_exec.tasks.notification.trial import send_test

    fault = send_test(tasks.context.config, tasks.store, tasks.sealer, notifier)
    if fault is None:
        return tasks.say({"sentFg": True, "error": None}, f"sent: {notifier.name}")
    document = {"ok": False, "error": "not sent", "detail": fault, "sentFg": False}
    tasks.output.answer(document, lambda: tasks.output.error(f"{notifier.name}: {fault}"))
    return 1


def list_notifiers(tasks: TaskContext, arguments: Arguments) -> int:
    """Show those of one project or of all."""
    found = _all(tasks, arguments.text("project"))
    rows = [
        (each.notifier_id, each.project_id, each.name, each.kind, "on" if each.is_enabled else "off",
         target(each))
        for each, _ in found
    ]  # fmt: skip
    document = {"ok": True, "notifiers": [encoded(each) for each in found]}
    columns = ("ID", "PROJECT", "NAME", "KIND", "STATE", "TO")
    tasks.output.answer(document, lambda: tasks.output.table(columns, rows))
    return 0


def target(notifier: Notifier) -> str:
    """Where it goes, as far as that is no secret."""
    addresses = notifier.settings.get("to") or [notifier.settings.get("url") or "(secret)"]
    return ", ".join(addresses)


def notifier_named(tasks: TaskContext, name: str, project_id: str | None) -> Found:
    """Give the notifier of that id, or of that name where it is the only one.

    Raises:
        NotFoundError: there is none.
        ConflictError: several projects have one of that name.
    """
    known = _all(tasks, project_id)
    return only_one([each for each in known if name in (each[0].notifier_id, each[0].name)], "notifier", name)


def _all(tasks: TaskContext, project_id: str | None) -> list[Found]:
    from ctrl_exec.tasks.notification.notifiers import list_notifiers as read

    wanted = {} if project_id is None else {"project_id": project_id}
    return tasks.all_pages(
        lambda after: read(tasks.store, tasks.identity, wanted, limit=_PAGE, after_id=after),
        lambda found: found[0].notifier_id,
    )


def encoded(found: Found) -> dict[str, Any]:
    """The notifier as the API gives it."""
    from ctrl_exec.tasks.notification.notifiers import encode_notifier

    return encode_notifier(found[0], has_secret=found[1])


COMMANDS = {
    "notifier": Command(
        "make, change, list, test and remove notifiers: where news of executions go",
        execute_notifier,
        arguments=action_places(ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--project",), "the project's id", "ID", completes="project"),
            Option(("--kind",), f"create: {', '.join(KINDS)}", "KIND", choices=KINDS),
            Option(("--to",), "EMAIL: an address; again for more", "ADDRESS", is_repeated=True),
            Option(("--url",), "NTFY, WEBHOOK: where it is posted to", "URL"),
            Option(
                ("--secret-file",),
                "a file whose first line is the secret: the address that a chat service gave, a token for"
                " NTFY, the signing key of WEBHOOK",
                "FILE",
                completes="file",
            ),
            Option(("--name",), "edit: another name", "TEXT"),
        ),
        actions=ACTIONS,
        description=(
            "A task's taskNotifierMap says which news go to which notifier. A notifier is named by its name"
            " or its id. Mail goes by the server of tasks.smtp_host."
        ),
        examples=(
            "ctrl-exec notifier create Ops --project web --kind EMAIL --to ops@example.net",
            "ctrl-exec notifier test Ops",
        ),
    ),
}
