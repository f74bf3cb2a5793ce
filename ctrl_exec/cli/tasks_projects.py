"""`ctrl-exec project`, `ctrl-exec task`: what is there to be executed, and whose it is."""

from __future__ import annotations

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Argument, Command, Option
from ctrl_exec.cli.tasks_context import TaskContext, open_tasks
from ctrl_exec.common.errors import ConflictError, NotFoundError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.tasks.models import Task

PROJECT_ACTIONS = ("create", "list", "grant", "remove", "export", "import")
TASK_ACTIONS = ("create", "list", "show", "next", "run", "enable", "disable", "remove")
_PAGE = 500
_DOCUMENT_LIMIT = 1 << 20


def execute_project(context: Context, arguments: Arguments) -> int:
    """Create, list or remove projects, or give somebody a role in one."""
    action, words = arguments.words[0], arguments.words[1:]
    expected = {"list": 0, "grant": 3}.get(action, 1)
    if len(words) != expected:
        raise UsageError(f"project {action} takes {('no', 'one', 'two', 'three')[expected]} more words")
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_projects(tasks)
        if action == "create":
            return create_project(tasks, arguments)
        if action == "grant":
            return grant_role(tasks, *words)
        if action == "export":
            return export_project(tasks, words[0])
        if action == "import":
            return import_project(tasks, words[0])
        from ctrl_exec.tasks.projects import remove_project

        remove_project(tasks.store, tasks.identity, words[0])
        document = {"ok": True, "removed": words[0]}
        tasks.output.answer(document, lambda: tasks.output.line(f"removed {words[0]}"))
        return 0


def create_project(tasks: TaskContext, arguments: Arguments) -> int:
    """Create a project and print its id."""
    from ctrl_exec.tasks.projects import add_project, decode_project, encode_project

    wanted = {"name": arguments.words[1], "description": arguments.text("description") or ""}
    project = add_project(tasks.store, tasks.identity, decode_project(wanted))
    document = {"ok": True, **encode_project(project)}
    tasks.output.answer(document, lambda: tasks.output.line(project.project_id))
    return 0


def export_project(tasks: TaskContext, project_id: str) -> int:
    """Print a project as one JSON document, with `--json` too."""
    import json

    from ctrl_exec.tasks import exchange

    document = exchange.export_project(tasks.store, tasks.identity, project_id)
    text = json.dumps(document, ensure_ascii=False, indent=2)
    tasks.output.answer(document, lambda: tasks.output.line(text))
    return 0


def import_project(tasks: TaskContext, path: str) -> int:
    """Make a project of such a document and say whose secrets have to be set again."""
    from ctrl_exec.tasks import exchange
    from ctrl_exec.tasks.projects import encode_project
    from ctrl_exec.tasks.sealing import Sealer

    sealer = Sealer(tasks.context.config.secrets_key_path)
    document = read_document(tasks, path)
    project, to_set = exchange.import_project(tasks.store, tasks.identity, sealer, document)
    answer = {"ok": True, "project": encode_project(project), "secretsToSet": to_set}
    tasks.output.answer(answer, lambda: tasks.output.line(project.project_id))
    for kind, names in to_set.items():
        if names:
            tasks.output.message(f"to be set again: {kind} {', '.join(names)}")
    return 0


def list_projects(tasks: TaskContext) -> int:
    """Show all projects."""
    from ctrl_exec.tasks import projects

    found = tasks.all_pages(
        lambda after: projects.list_projects(tasks.store, tasks.identity, limit=_PAGE, after_id=after),
        "project_id",
    )
    document = {"ok": True, "projects": [projects.encode_project(each) for each in found]}
    rows = [(each.project_id, each.name) for each in found]
    tasks.output.answer(document, lambda: tasks.output.table(("ID", "NAME"), rows))
    return 0


def grant_role(tasks: TaskContext, project_id: str, name: str, role: str) -> int:
    """Give a user a role in a project, instead of the one they have there; `none` takes it away."""
    from ctrl_exec.cli.tasks_people import user_named
    from ctrl_exec.tasks.models import ROLES, Role
    from ctrl_exec.tasks.projects import list_roles, set_roles

    wanted = role.upper()
    if wanted not in (*ROLES, "NONE"):
        raise UsageError(f"ROLE: expected {', '.join(ROLES)} or none, not {role!r}")
    user = user_named(tasks, name)
    others = [
        each for each in list_roles(tasks.store, tasks.identity, project_id) if each.user_id != user.user_id
    ]
    added = [] if wanted == "NONE" else [Role(project_id, wanted, user.user_id)]
    set_roles(tasks.store, tasks.identity, project_id, (*others, *added))
    document = {"ok": True, "projectId": project_id, "user": user.name, "role": wanted}
    tasks.output.answer(document, lambda: tasks.output.line(f"{user.name} in {project_id}: {wanted}"))
    return 0


def execute_task(context: Context, arguments: Arguments) -> int:
    """Create, list, show, start, switch or remove tasks."""
    action, words = arguments.words[0], arguments.words[1:]
    if action != "run" and (arguments.flag("follow") or arguments.many("parameter")):
        raise UsageError("-p and --follow belong to `task run`")
    if bool(words) == (action == "list"):
        raise UsageError(f"task {action} takes {'no name' if words else 'a name, an id or a file'}")
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_tasks(tasks, arguments)
        if action == "create":
            return create_task(tasks, words[0])
        task = task_named(tasks, words[0], arguments.text("project"))
        if action == "run":
            from ctrl_exec.cli.tasks_executions import run_task

            return run_task(tasks, task, arguments)
        return act_on_task(tasks, action, task)


def create_task(tasks: TaskContext, path: str) -> int:
    """Create a task from a JSON document and print its id."""
    from ctrl_exec.tasks import definitions
    from ctrl_exec.tasks.codec import encode_task

    task = definitions.create_task(tasks.store, tasks.identity, read_document(tasks, path))
    document = {"ok": True, **encode_task(task)}
    tasks.output.answer(document, lambda: tasks.output.line(task.task_id))
    return 0


def read_document(tasks: TaskContext, path: str) -> dict[str, Any]:
    """Read one JSON object from a file, or with `-` from standard input.

    Raises:
        UsageError: it cannot be read.
        MessageError: it is no JSON object.
    """
    from ctrl_exec.common.messages import parse_object

    try:
        if path == "-":
            text = tasks.context.stdin.read(_DOCUMENT_LIMIT)
        else:
            with open(path, encoding="utf-8") as stream:
                text = stream.read(_DOCUMENT_LIMIT)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error
    return parse_object(text.encode("utf-8"))


def list_tasks(tasks: TaskContext, arguments: Arguments) -> int:
    """Show the tasks of one project or of all."""
    from ctrl_exec.tasks import definitions
    from ctrl_exec.tasks.codec import encode_task

    project = arguments.text("project")
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
         task.cron_expression if task.is_scheduled and task.cron_expression else "-")
        for task in found
    ]  # fmt: skip
    columns = ("ID", "PROJECT", "NAME", "TYPE", "STATE", "CRON")
    tasks.output.answer(document, lambda: tasks.output.table(columns, rows))
    return 0


def task_named(tasks: TaskContext, name: str, project_id: str | None) -> Task:
    """Give the task of that id, or of that name where it is the only one.

    Raises:
        NotFoundError: there is none.
        ConflictError: several projects have one of that name.
    """
    from ctrl_exec.tasks.definitions import find_named

    found = find_named(tasks.store, tasks.identity, name, project_id)
    if not found:
        raise NotFoundError(f"no task {name!r}; `ctrl-exec task list` shows them")
    if len(found) > 1:
        raise ConflictError(f"several projects have a task {name!r}: add --project, or name it by its id")
    return found[0]


def act_on_task(tasks: TaskContext, action: str, task: Task) -> int:
    """Show, switch or remove one task."""
    import json

    from ctrl_exec.tasks import definitions
    from ctrl_exec.tasks.codec import encode_task

    if action == "show":
        document = encode_task(task)
        text = json.dumps(document, ensure_ascii=False, indent=2)
        tasks.output.answer({"ok": True, **document}, lambda: tasks.output.line(text))
        return 0
    if action == "next":
        return show_next(tasks, task)
    if action == "remove":
        definitions.remove_task(tasks.store, tasks.identity, task.task_id)
    else:
        changed = {"enabledFg": action == "enable"}
        definitions.change_task(
            tasks.store, tasks.identity, task.task_id, lambda current: encode_task(current) | changed
        )
    answer = {"ok": True, "taskId": task.task_id, "action": action}
    tasks.output.answer(answer, lambda: tasks.output.line(f"{action}: {task.name}"))
    return 0


def show_next(tasks: TaskContext, task: Task) -> int:
    """Show the next starts of one task by the clock, in its zone."""
    from datetime import datetime

    from ctrl_exec.tasks import upcoming
    from ctrl_exec.tasks.zones import local_zone

    now_s = tasks.store.clock_ns() / upcoming.NS
    starts = upcoming.upcoming(task, local_zone(tasks.context.environment), now_s)
    rows = [
        (datetime.fromtimestamp(each.due_s, each.zone).isoformat(), str(each.schedule.timezone or "-"),
         each.schedule.cron_expression)
        for each in starts
    ]  # fmt: skip
    document = {"ok": True, "items": [upcoming.encode_upcoming(each) for each in starts]}
    tasks.output.answer(document, lambda: tasks.output.table(("START", "ZONE", "CRON"), rows))
    return 0


PROJECT_OPTION = Option(("--project",), "the project's id", "ID")

COMMANDS = {
    "project": Command(
        "create, list and remove projects, give roles in them",
        execute_project,
        arguments=(
            Argument("ACTION", "what to do", 1, 1, choices=PROJECT_ACTIONS),
            Argument(
                "NAME",
                "create: a name; import: a file; else the project's id, for grant then USER and ROLE",
                0,
                3,
            ),
        ),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--description",), "create: what it is for, in Markdown", "TEXT"),
        ),
        description="`create` prints the id. Roles: MANAGER, ADVANCED_EXECUTOR, EXECUTOR, VIEWER, none.",
        examples=(
            'ctrl-exec project create "My awesome project"',
            "ctrl-exec project grant my-awesome-project alice MANAGER",
            "ctrl-exec project export my-awesome-project > project.json",
        ),
    ),
    "task": Command(
        "create, list, show, start, switch and remove tasks",
        execute_task,
        arguments=(
            Argument("ACTION", "what to do", 1, 1, choices=TASK_ACTIONS),
            Argument("NAME", "a task's name or id; create: a JSON file, or - for standard input", 0, 1),
        ),
        options=(
            *CREDENTIAL_OPTIONS,
            PROJECT_OPTION,
            Option(("-p", "--parameter"), "run: a value; again for more", "NAME=VALUE", is_repeated=True),
            Option(("-f", "--follow"), "run: show the log as it comes, to the end"),
        ),
        description=(
            "`create` prints the task's id. The task belongs to the user of --username. `run` has the"
            " scheduler execute it and prints the execution's id. With --follow the exit code is that of the"
            " end: 0 SUCCESS, 124 TIMED_OUT, 1 any other; Ctrl-C ends the watching, not the execution. A"
            " SECRET is given as NAME=@FILE or, from standard input, as NAME=-."
        ),
        examples=(
            "ctrl-exec task create task.json --username alice",
            "ctrl-exec task list",
            "ctrl-exec task next Greet",
            "ctrl-exec task run Greet -p WHOM=you --follow",
        ),
        exit_codes=(0, 1, 2, 3, 124, 130),
    ),
}
