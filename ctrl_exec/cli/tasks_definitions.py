"""`ctrl-exec task`: what can be executed, and when it is due."""

from __future__ import annotations

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, Option, action_places
from ctrl_exec.cli.tasks_context import TaskContext, only_one, open_tasks, read_document
from ctrl_exec.common.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.tasks.models import Task

ACTIONS = (
    Action("create", "FILE", "a new task of a JSON document, - for standard input; prints its id"),
    Action("list", "", "the tasks"),
    Action("show", "TASK", "one as the API gives it"),
    Action("next", "[TASK]", "when it is due next; without a name, what is due next of all"),
    Action("run", "TASK", "have it executed; prints the execution's id"),
    Action("edit", "TASK FILE", "change what a JSON document names: a merge patch"),
    Action("enable", "TASK", "have it started again"),
    Action("disable", "TASK", "have it not started at all"),
    Action("export", "TASK", "print it as `create` takes it"),
    Action("remove", "TASK", "forget it with the records of its executions"),
)
_PAGE = 500
_SHOWN = 20
_OWN_KEYS = ("taskId", "creationTs", "updateTs", "userId")


def execute_task(context: Context, arguments: Arguments) -> int:
    """Do one of the actions."""
    action, words = arguments.words[0], arguments.words[1:]
    if action != "run" and (arguments.flag("follow") or arguments.many("parameter")):
        raise UsageError("-p and --follow belong to `task run`")
    if arguments.flag("limit") and (action != "next" or words):
        raise UsageError("--limit belongs to `task next` without a name")
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_tasks(tasks, arguments)
        if action == "create":
            return create_task(tasks, words[0])
        if not words:
            return show_agenda(tasks, arguments)
        task = task_named(tasks, words[0], arguments.text("project"))
        if action == "run":
            from ctrl_exec.cli.tasks_executions import run_task

            return run_task(tasks, task, arguments)
        if action == "edit":
            return edit_task(tasks, task, words[1])
        return act_on_task(tasks, action, task)


def create_task(tasks: TaskContext, path: str) -> int:
    """Create a task from a JSON document and print its id."""
    from ctrl_exec.tasks import definitions
    from ctrl_exec.tasks.codec import encode_task

    task = definitions.create_task(tasks.store, tasks.identity, read_document(tasks, path))
    return tasks.say(encode_task(task), task.task_id)


def edit_task(tasks: TaskContext, task: Task, path: str) -> int:
    """Change what a document names, as PATCH does."""
    from ctrl_exec.tasks import definitions
    from ctrl_exec.tasks.codec import encode_task, patched

    patch = read_document(tasks, path)
    changed = definitions.change_task(
        tasks.store, tasks.identity, task.task_id, lambda current: patched(current, patch)
    )
    return tasks.say(encode_task(changed), f"edit: {changed.name}")


def list_tasks(tasks: TaskContext, arguments: Arguments) -> int:
    """Show the tasks of one project or of all."""
    from ctrl_exec.tasks import definitions
    from ctrl_exec.tasks.codec import encode_task

    project = arguments.text("project")
    if project is not None:
        from ctrl_exec.tasks.projects import find_project

        find_project(tasks.store, tasks.identity, project)
    wanted = {} if project is None else {"project_id": project}
    found = tasks.all_pages(
        lambda after: definitions.list_tasks(
            tasks.store, tasks.identity, wanted, limit=_PAGE, after_id=after
        ),
        "task_id",
    )
    document = {"ok": True, "tasks": [encode_task(task) for task in found]}
    rows = [
        (task.task_id, task.project_id, task.name, task.task_type, "on" if task.is_enabled else "off",
         shown_schedule(task))
        for task in found
    ]  # fmt: skip
    columns = ("ID", "PROJECT", "NAME", "TYPE", "STATE", "CRON")
    tasks.output.answer(document, lambda: tasks.output.table(columns, rows))
    return 0


def shown_schedule(task: Task) -> str:
    """When it is due, in few words."""
    if not task.is_scheduled:
        return "-"
    crons = [task.cron_expression, *(each.cron_expression for each in task.schedules)]
    return " | ".join(each for each in crons if each) or "-"


def task_named(tasks: TaskContext, name: str, project_id: str | None) -> Task:
    """Give the task of that id, or of that name where it is the only one.

    Raises:
        NotFoundError: there is none.
        ConflictError: several projects have one of that name.
    """
    from ctrl_exec.tasks.definitions import find_named

    return only_one(find_named(tasks.store, tasks.identity, name, project_id), "task", name)


def task_name(tasks: TaskContext, task_id: str) -> str:
    """A task's name; its id if it is gone."""
    row = tasks.store.row("SELECT name FROM tasks WHERE task_id = ?", (task_id,))
    return task_id if row is None else str(row["name"])


def act_on_task(tasks: TaskContext, action: str, task: Task) -> int:
    """Show, switch or remove one task."""
    from ctrl_exec.tasks import definitions
    from ctrl_exec.tasks.codec import encode_task

    if action == "show":
        return tasks.show(encode_task(task))
    if action == "export":
        return export_task(tasks, task)
    if action == "next":
        return show_next(tasks, task)
    if action == "remove":
        definitions.remove_task(tasks.store, tasks.identity, task.task_id)
    else:
        changed = {"enabledFg": action == "enable"}
        definitions.change_task(
            tasks.store, tasks.identity, task.task_id, lambda current: encode_task(current) | changed
        )
    return tasks.say({"taskId": task.task_id, "action": action}, f"{action}: {task.name}")


def export_task(tasks: TaskContext, task: Task) -> int:
    """Print the document that `create` makes such a task of, with `--json` too."""
    import json

    from ctrl_exec.tasks.codec import encode_task

    document = {name: content for name, content in encode_task(task).items() if name not in _OWN_KEYS}
    text = json.dumps(document, ensure_ascii=False, indent=2)
    tasks.output.answer(document, lambda: tasks.output.line(text))
    return 0


def show_next(tasks: TaskContext, task: Task) -> int:
    """Show the next starts of one task by the clock, in its zone."""
    from ctrl_exec.tasks.clock import upcoming
    from ctrl_exec.tasks.clock.zones import local_zone

    now_s = tasks.store.clock_ns() / upcoming.NS
    starts = upcoming.upcoming(task, local_zone(tasks.context.environment), now_s)
    rows = [
        (_shown_time(each), str(each.schedule.timezone or "-"), each.schedule.cron_expression)
        for each in starts
    ]
    document = {"ok": True, "items": [upcoming.encode_upcoming(each) for each in starts]}
    tasks.output.answer(document, lambda: tasks.output.table(("START", "ZONE", "CRON"), rows))
    return 0


def show_agenda(tasks: TaskContext, arguments: Arguments) -> int:
    """Show what is due next over all tasks, or those of one project."""
    from ctrl_exec.tasks.clock import agenda
    from ctrl_exec.tasks.clock.zones import local_zone

    project = arguments.text("project")
    limit = arguments.integer("limit", 1, _PAGE) or _SHOWN
    if project is not None:
        from ctrl_exec.tasks.projects import find_project

        find_project(tasks.store, tasks.identity, project)
    first_s, _ = agenda.span_of(None, None, tasks.store.clock_ns())
    wanted = agenda.Wanted(from_s=first_s, project_id=project)
    local = local_zone(tasks.context.environment)
    page = agenda.agenda(tasks.store, tasks.identity, wanted, local, limit)
    rows = [
        (_shown_time(each.start), each.name, each.project_id, each.start.schedule.cron_expression)
        for each in page.entries
    ]
    document = {"ok": True, "items": [agenda.encode_entry(each) for each in page.entries]}
    tasks.output.answer(document, lambda: tasks.output.table(("START", "TASK", "PROJECT", "CRON"), rows))
    return 0


def _shown_time(start: Any) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(start.due_s, start.zone).isoformat()


COMMANDS = {
    "task": Command(
        "create, change, list, start, switch and remove tasks",
        execute_task,
        arguments=action_places(ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--project",), "the project's id", "ID", completes="project"),
            Option(("-p", "--parameter"), "run: a value; again for more", "NAME=VALUE", is_repeated=True),
            Option(("-f", "--follow"), "run: show the log as it comes, to the end"),
            Option(("--limit",), f"next: so many starts, up to {_PAGE} (default: {_SHOWN})", "N"),
        ),
        actions=ACTIONS,
        description=(
            "A task is named by its name or its id, and belongs to the user of --username who makes it. The"
            " scheduler executes what `run` asks for. With --follow the exit code is that of the"
            " end: 0 SUCCESS, 124 TIMED_OUT, 1 any other; Ctrl-C ends the watching, not the execution. A"
            " SECRET is given as NAME=@FILE or, from standard input, as NAME=-."
        ),
        examples=(
            "ctrl-exec task create task.json --username alice",
            "ctrl-exec task next",
            "ctrl-exec task run Greet -p WHOM=you --follow",
        ),
        exit_codes=(0, 1, 2, 3, 124, 130),
    ),
}
