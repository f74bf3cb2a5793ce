"""`ctrl-exec audit`: who did what in the task layer."""

from __future__ import annotations

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, Option, action_places
from ctrl_exec.cli.tasks_context import TaskContext, open_tasks
from ctrl_exec.common.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.tasks.models import AuditEntry

ACTIONS = (
    Action("list", "", "the newest entries, newest first"),
    Action("show", "ENTRY", "one with what was before and after"),
)
_MOST = 500
_SHOWN = 50


def execute_audit(context: Context, arguments: Arguments) -> int:
    """List entries, or show one."""
    with open_tasks(context, arguments) as tasks:
        if arguments.words[0] == "list":
            return list_audit(tasks, arguments)
        return show_entry(tasks, arguments.words[1])


def list_audit(tasks: TaskContext, arguments: Arguments) -> int:
    """Show the newest entries that the options ask for."""
    from ctrl_exec.tasks.audit import encode_entry, list_entries

    columns = {"type": "object_type", "object": "object_id", "project": "project_id", "action": "action"}
    wanted = {column: arguments.text(name) or "" for name, column in columns.items() if arguments.flag(name)}
    if arguments.flag("user"):
        from ctrl_exec.cli.tasks_people import user_named

        wanted["user_id"] = user_named(tasks, arguments.text("user") or "").user_id
    limit = arguments.integer("limit", 1, _MOST) or _SHOWN
    found = list_entries(tasks.store, wanted, limit=limit)
    rows = [
        (each.audit_id, tasks.time_of(each.at_ns), each.username or "-", each.via, each.action,
         each.object_type, named(each), each.project_id or "-")
        for each in found
    ]  # fmt: skip
    document = {"ok": True, "entries": [encode_entry(each) for each in found]}
    heads = ("ID", "TIME", "USER", "VIA", "ACTION", "TYPE", "OBJECT", "PROJECT")
    tasks.output.answer(document, lambda: tasks.output.table(heads, rows))
    return 0


def named(entry: AuditEntry) -> str:
    """The object's name then, or its id."""
    for document in (entry.after, entry.before):
        name = (document or {}).get("name")
        if isinstance(name, str):
            return name
    return entry.object_id


def show_entry(tasks: TaskContext, audit_id: str) -> int:
    """Show one entry as the API gives it."""
    from ctrl_exec.tasks.audit import encode_entry, find_entry

    entry = find_entry(tasks.store, audit_id.upper())
    if entry is None:
        raise NotFoundError(f"no entry {audit_id!r}; `ctrl-exec audit list` shows them")
    return tasks.show(encode_entry(entry))


COMMANDS = {
    "audit": Command(
        "show who did what in the task layer, and what was before and after",
        execute_audit,
        arguments=action_places(ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--project",), "list: in this project", "ID", completes="project"),
            Option(("--user",), "list: by this user", "NAME", completes="user"),
            Option(("--action",), "list: this action: create, update, delete, start, …", "WORD"),
            Option(("--type",), "list: on objects of this kind: task, user, token, …", "WORD"),
            Option(("--object",), "list: on the object of this id", "ID"),
            Option(("--limit",), f"list: so many of the newest, up to {_MOST} (default: {_SHOWN})", "N"),
        ),
        actions=ACTIONS,
        description="Entries are only added; secrets are masked in them.",
        examples=("ctrl-exec audit list --project my-awesome-project --action delete",),
    ),
}
