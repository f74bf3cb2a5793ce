"""`ctrl-exec webhook`: addresses that start tasks."""

from __future__ import annotations

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, Option, action_places
from ctrl_exec.cli.tasks_context import TaskContext, only_one, open_tasks, read_secret
from ctrl_exec.common.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.tasks.models import Webhook

SCHEMES = ("GENERIC", "GITHUB", "GITLAB", "GITEA", "STANDARD")
ACTIONS = (
    Action("create", "NAME", "a new one for --task; prints its address and, this once, its secret"),
    Action("list", "", "all of them, or those of --project"),
    Action("show", "WEBHOOK", "one as the API gives it"),
    Action("edit", "WEBHOOK", "change what the options say"),
    Action("enable", "WEBHOOK", "have it start its task again"),
    Action("disable", "WEBHOOK", "have it start nothing"),
    Action("remove", "WEBHOOK", "forget it"),
)
_PAGE = 500
_SECRET_BYTES = 32


def execute_webhook(context: Context, arguments: Arguments) -> int:
    """Do one of the actions."""
    action, words = arguments.words[0], arguments.words[1:]
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_webhooks(tasks, arguments)
        if action == "create":
            return create_webhook(tasks, arguments)
        webhook = webhook_named(tasks, words[0], arguments.text("project"))
        if action == "show":
            from ctrl_exec.tasks.inbound.webhooks import encode_webhook

            return tasks.show(encode_webhook(webhook))
        if action == "remove":
            from ctrl_exec.tasks.inbound.webhooks import remove_webhook

            remove_webhook(tasks.store, tasks.identity, webhook.webhook_id)
            return tasks.say({"removed": webhook.webhook_id}, f"removed {webhook.name}")
        return change_webhook(tasks, webhook, action, arguments)


def create_webhook(tasks: TaskContext, arguments: Arguments) -> int:
    """Make one; a secret of our own making is shown this once."""
    if arguments.text("task") is None:
        raise UsageError("webhook create needs --task TASK: what it starts")
    if not tasks.identity.user_id:
        raise UsageError(
            f"no user {tasks.identity.username!r}: --username says with whose rights it starts its task"
        )
    wanted = {"name": arguments.words[1]} | described(tasks, arguments)
    made = "" if "secret" in wanted else new_secret(wanted.get("scheme", SCHEMES[0]))
    webhook = _save(tasks, {"secret": made} | wanted, None)
    return _tell(tasks, webhook, made, f"/hooks/{webhook.webhook_id}")


def described(tasks: TaskContext, arguments: Arguments) -> dict[str, Any]:
    """What the options say of a webhook, as the API takes it; an empty word empties a list.

    Raises:
        UsageError: --map is no assignment.
    """
    from ctrl_exec.cli.tasks_definitions import task_named

    found: dict[str, Any] = {}
    task = arguments.text("task")
    if task is not None:
        found["taskId"] = task_named(tasks, task, arguments.text("project")).task_id
    for option in ("name", "scheme"):
        given = arguments.text(option)
        if given is not None:
            found[option] = given
    for option, key in (("event", "events"), ("branch", "branches")):
        if arguments.flag(option):
            found[key] = [each for each in arguments.many(option) if each]
    if arguments.flag("map"):
        found["parameterMapping"] = dict(_assignment(each) for each in arguments.many("map") if each)
    path = arguments.text("secret-file")
    if path is not None:
        found["secret"] = read_secret(tasks, path, "--secret-file")
    return found


def _assignment(word: str) -> tuple[str, str]:
    name, equals, path = word.partition("=")
    if not (name and equals and path):
        raise UsageError(f"--map: expected PARAMETER=JSON.PATH, not {word!r}")
    return name, path


def new_secret(scheme: str) -> str:
    """A secret that nobody guesses, in the form that a scheme has."""
    import base64
    import secrets

    if scheme == "STANDARD":
        return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")
    return secrets.token_urlsafe(_SECRET_BYTES)


def change_webhook(tasks: TaskContext, current: Webhook, action: str, arguments: Arguments) -> int:
    """Change what the options say, or switch it; it starts its task with the rights of who saved it last."""
    if action != "edit":
        webhook = _save(tasks, {"enabledFg": action == "enable"}, current)
        return _tell(tasks, webhook, "", f"{action}: {webhook.name}")
    changes = described(tasks, arguments)
    made = ""
    if arguments.flag("new-secret"):
        if "secret" in changes:
            raise UsageError("--new-secret makes one and --secret-file names one: not both")
        changes["secret"] = made = new_secret(changes.get("scheme", current.scheme))
    if not changes:
        raise UsageError("nothing to change: give --name, --task, --scheme, --event, … or --new-secret")
    webhook = _save(tasks, changes, current)
    return _tell(tasks, webhook, made, f"{action}: {webhook.name}")


def _save(tasks: TaskContext, wanted: dict[str, Any], current: Webhook | None) -> Webhook:
    from ctrl_exec.common.value import replace
    from ctrl_exec.tasks.inbound.webhooks import decode_webhook, save_webhook

    draft, secret = decode_webhook(wanted, current)
    identity = tasks.identity
    if current is not None and not identity.user_id:
        # who has no account here keeps whose rights it has
        identity = replace(identity, user_id=current.user_id)
    return save_webhook(tasks.store, identity, tasks.sealer, draft, secret)


def _tell(tasks: TaskContext, webhook: Webhook, secret: str, words: str) -> int:
    from ctrl_exec.tasks.inbound.webhooks import encode_webhook

    document = {"ok": True, **encode_webhook(webhook), "path": f"/hooks/{webhook.webhook_id}"}

    def show() -> None:
        tasks.output.line(words)
        if secret:
            tasks.output.line(secret)

    tasks.output.answer(document | ({"secret": secret} if secret else {}), show)
    return 0


def list_webhooks(tasks: TaskContext, arguments: Arguments) -> int:
    """Show those of one project or of all."""
    from ctrl_exec.cli.tasks_definitions import task_name
    from ctrl_exec.tasks.inbound.webhooks import encode_webhook

    found = _all(tasks, arguments.text("project"))
    rows = [
        (each.webhook_id, each.project_id, each.name, each.scheme, task_name(tasks, each.task_id),
         tasks.name_of(each.user_id), "on" if each.is_enabled else "off")
        for each in found
    ]  # fmt: skip
    document = {"ok": True, "webhooks": [encode_webhook(each) for each in found]}
    columns = ("ID", "PROJECT", "NAME", "SCHEME", "TASK", "USER", "STATE")
    tasks.output.answer(document, lambda: tasks.output.table(columns, rows))
    return 0


def webhook_named(tasks: TaskContext, name: str, project_id: str | None) -> Webhook:
    """Give the webhook of that id, or of that name where it is the only one.

    Raises:
        NotFoundError: there is none.
        ConflictError: several projects have one of that name.
    """
    known = _all(tasks, project_id)
    return only_one([each for each in known if name in (each.webhook_id, each.name)], "webhook", name)


def _all(tasks: TaskContext, project_id: str | None) -> list[Webhook]:
    from ctrl_exec.tasks.inbound.webhooks import list_webhooks as read

    wanted = {} if project_id is None else {"project_id": project_id}
    return tasks.all_pages(
        lambda after: read(tasks.store, tasks.identity, wanted, limit=_PAGE, after_id=after), "webhook_id"
    )


COMMANDS = {
    "webhook": Command(
        "make, change, list and remove webhooks: addresses that start tasks",
        execute_webhook,
        arguments=action_places(ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--task",), "create, edit: what it starts", "TASK", completes="task"),
            Option(("--project",), "the project's id", "ID", completes="project"),
            Option(
                ("--scheme",),
                f"how senders prove themselves: {', '.join(SCHEMES)} (default: {SCHEMES[0]})",
                "SCHEME",
                choices=SCHEMES,
            ),
            Option(("--event",), "only this event; again for more; '' for all", "NAME", is_repeated=True),
            Option(("--branch",), "only this branch; again for more; '' for all", "NAME", is_repeated=True),
            Option(
                ("-m", "--map"),
                "a parameter of the task from a field of the JSON that comes; again for more",
                "PARAMETER=JSON.PATH",
                is_repeated=True,
            ),
            Option(("--secret-file",), "a file whose first line is the secret", "FILE", completes="file"),
            Option(("--new-secret",), "edit: make another secret and print it"),
            Option(("--name",), "edit: another name", "TEXT"),
        ),
        actions=ACTIONS,
        description=(
            "The address is a path of the API. A webhook starts its task with the rights of --username, and"
            " after a change with those of who changed it. It is named by its name or its id."
        ),
        examples=(
            "ctrl-exec webhook create Push --task Greet --scheme GITHUB --username alice",
            "ctrl-exec webhook edit Push --new-secret",
        ),
    ),
}
