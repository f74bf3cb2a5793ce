"""`ctrl-exec project`: what tasks belong to, and who has which role there."""

from __future__ import annotations

import re

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, Option, action_places
from ctrl_exec.cli.tasks_context import TaskContext, open_tasks, read_document
from ctrl_exec.common.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context

_PAGE = 500
_TIMEOUT = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_UNITS = {"s": "SECOND", "m": "MINUTE", "h": "HOUR", "d": "DAY"}
NONE = "none"

ACTIONS = (
    Action("create", "NAME", "a new project; prints its id"),
    Action("list", "", "the projects"),
    Action("show", "PROJECT", "one as the API gives it"),
    Action("edit", "PROJECT", "change what the options say"),
    Action("roles", "PROJECT", "who has which role"),
    Action("grant", "PROJECT USER ROLE", "give a role instead of the one they have; none takes it away"),
    Action("export", "PROJECT", "print it with all that belongs to it, as one JSON document"),
    Action("import", "FILE", "a new project of such a document"),
    Action("remove", "PROJECT", "forget it with all that belongs to it"),
)


def execute_project(context: Context, arguments: Arguments) -> int:
    """Do one of the actions."""
    action, words = arguments.words[0], arguments.words[1:]
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_projects(tasks)
        if action == "create":
            return create_project(tasks, arguments)
        if action == "grant":
            return grant_role(tasks, arguments)
        return _OF_ONE[action](tasks, words[0], arguments)


def create_project(tasks: TaskContext, arguments: Arguments) -> int:
    """Create a project and print its id."""
    from ctrl_exec.tasks.projects import add_project, decode_project, encode_project

    wanted = {"name": arguments.words[1], **described(arguments)}
    project = add_project(tasks.store, tasks.identity, decode_project(wanted))
    return tasks.say(encode_project(project), project.project_id)


def described(arguments: Arguments) -> dict[str, Any]:
    """What the options say of a project, as the API takes it.

    Raises:
        UsageError: --timeout or --retention is no such thing.
    """
    found: dict[str, Any] = {}
    for option, key in (("name", "name"), ("description", "description")):
        given = arguments.text(option)
        if given is not None:
            found[key] = given
    timeout = arguments.text("timeout")
    if timeout is not None:
        match = _TIMEOUT.fullmatch(timeout)
        if match is None and timeout != NONE:
            raise UsageError(f"--timeout: expected a number with s, m, h or d, or none, not {timeout!r}")
        found["timeout"] = None if match is None else int(match[1])
        found["timeoutDurationUnit"] = None if match is None else _UNITS[match[2]]
    retention = arguments.text("retention")
    if retention is not None:
        is_none = retention == NONE
        found["executionRetentionPeriod"] = None if is_none else arguments.integer("retention", 0, 36500)
    return found


def show_project(tasks: TaskContext, project_id: str, _arguments: Arguments) -> int:
    """Show one."""
    from ctrl_exec.tasks.projects import encode_project, find_project

    return tasks.show(encode_project(find_project(tasks.store, tasks.identity, project_id)))


def edit_project(tasks: TaskContext, project_id: str, arguments: Arguments) -> int:
    """Change what the options say."""
    from ctrl_exec.tasks.projects import change_project, decode_project, encode_project, find_project

    changes = described(arguments)
    if not changes:
        raise UsageError("nothing to change: give --name, --description, --timeout or --retention")
    current = find_project(tasks.store, tasks.identity, project_id)
    draft = decode_project(encode_project(current) | changes, current)
    project = change_project(tasks.store, tasks.identity, draft)
    return tasks.say(encode_project(project), f"changed {project_id}")


def remove_project(tasks: TaskContext, project_id: str, _arguments: Arguments) -> int:
    """Forget one."""
    from ctrl_exec.tasks.projects import remove_project as remove

    remove(tasks.store, tasks.identity, project_id)
    return tasks.say({"removed": project_id}, f"removed {project_id}")


def export_project(tasks: TaskContext, project_id: str, _arguments: Arguments) -> int:
    """Print a project as one JSON document, with `--json` too."""
    import json

    from ctrl_exec.tasks import exchange

    document = exchange.export_project(tasks.store, tasks.identity, project_id)
    text = json.dumps(document, ensure_ascii=False, indent=2)
    tasks.output.answer(document, lambda: tasks.output.line(text))
    return 0


def import_project(tasks: TaskContext, path: str, _arguments: Arguments) -> int:
    """Make a project of such a document and say whose secrets have to be set again."""
    from ctrl_exec.tasks import exchange
    from ctrl_exec.tasks.projects import encode_project

    document = read_document(tasks, path)
    project, to_set = exchange.import_project(tasks.store, tasks.identity, tasks.sealer, document)
    tasks.say({"project": encode_project(project), "secretsToSet": to_set}, project.project_id)
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


def show_roles(tasks: TaskContext, project_id: str, _arguments: Arguments) -> int:
    """Show who has which role in a project."""
    from ctrl_exec.cli.tasks_teams import team_name
    from ctrl_exec.tasks.projects import encode_role, list_roles

    found = list_roles(tasks.store, tasks.identity, project_id)
    rows = sorted(
        ("team", team_name(tasks, each.team_id), each.role)
        if each.team_id
        else ("user", tasks.name_of(each.user_id), each.role)
        for each in found
    )
    document = {"ok": True, "roles": [encode_role(each) for each in found]}
    tasks.output.answer(document, lambda: tasks.output.table(("KIND", "NAME", "ROLE"), rows))
    return 0


def grant_role(tasks: TaskContext, arguments: Arguments) -> int:
    """Give a user or a team a role in a project, instead of the one they have there."""
    from ctrl_exec.cli.tasks_people import user_named
    from ctrl_exec.cli.tasks_teams import team_named
    from ctrl_exec.tasks.models import ROLES, Role
    from ctrl_exec.tasks.projects import list_roles, set_roles

    project_id, name, role = arguments.words[1:]
    wanted = role.upper()
    if wanted not in (*ROLES, "NONE"):
        raise UsageError(f"ROLE: expected {', '.join(ROLES)} or none, not {role!r}")
    before = list_roles(tasks.store, tasks.identity, project_id)
    kind = "team" if arguments.flag("team") else "user"
    if kind == "team":
        team = team_named(tasks, name)
        name, given = team.name, Role(project_id, wanted, team_id=team.team_id)
    else:
        user = user_named(tasks, name)
        name, given = user.name, Role(project_id, wanted, user_id=user.user_id)
    others = [each for each in before if (each.user_id, each.team_id) != (given.user_id, given.team_id)]
    added = [] if wanted == "NONE" else [given]
    set_roles(tasks.store, tasks.identity, project_id, (*others, *added))
    document = {"projectId": project_id, kind: name, "role": wanted}
    return tasks.say(document, f"{name} in {project_id}: {wanted}")


_OF_ONE = {
    "show": show_project,
    "edit": edit_project,
    "roles": show_roles,
    "export": export_project,
    "import": import_project,
    "remove": remove_project,
}

COMMANDS = {
    "project": Command(
        "create, change, list and remove projects, give roles in them",
        execute_project,
        arguments=action_places(ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--name",), "edit: another name; the id stays", "TEXT"),
            Option(("--description",), "create, edit: what it is for, in Markdown", "TEXT"),
            Option(("--timeout",), "create, edit: for tasks without one: 30m; none: the global one", "TIME"),
            Option(("--retention",), "create, edit: days that executions are kept; none likewise", "DAYS"),
            Option(("--team",), "grant: the name is a team's"),
        ),
        actions=ACTIONS,
        description=(
            "A project's id is the slug of its first name. Roles: MANAGER edits, ADVANCED_EXECUTOR runs and"
            " sees logs, EXECUTOR runs, VIEWER looks."
        ),
        examples=(
            'ctrl-exec project create "My awesome project" --timeout 30m',
            "ctrl-exec project grant my-awesome-project alice MANAGER",
            "ctrl-exec project export my-awesome-project > project.json",
        ),
    ),
}
