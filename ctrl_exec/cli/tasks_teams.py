"""`ctrl-exec team`: users who share roles."""

from __future__ import annotations

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, action_places
from ctrl_exec.cli.tasks_context import TaskContext, open_tasks
from ctrl_exec.common.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.tasks.models import Team

ACTIONS = (
    Action("create", "NAME [USER...]", "a new team of these users"),
    Action("list", "", "the teams and who is in them"),
    Action("show", "TEAM", "one as the API gives it"),
    Action("add", "TEAM USER...", "take users in"),
    Action("drop", "TEAM USER...", "let users go"),
    Action("rename", "TEAM NAME", "give it another name"),
    Action("remove", "TEAM", "forget it with the roles it gave"),
)
_PAGE = 500


def execute_team(context: Context, arguments: Arguments) -> int:
    """Do one of the actions."""
    action, words = arguments.words[0], arguments.words[1:]
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_teams(tasks)
        if action == "create":
            return create_team(tasks, words[0], words[1:])
        team = team_named(tasks, words[0])
        if action == "show":
            from ctrl_exec.tasks.people.teams import encode_team

            return tasks.show(encode_team(team))
        if action == "remove":
            from ctrl_exec.tasks.people.teams import remove_team

            remove_team(tasks.store, tasks.identity, team.team_id)
            return tasks.say({"removed": team.name}, f"removed {team.name}")
        return change_team(tasks, team, action, words[1:])


def create_team(tasks: TaskContext, name: str, members: tuple[str, ...]) -> int:
    """Make a team."""
    from ctrl_exec.tasks.people.teams import decode_team, encode_team, save_team

    draft = decode_team({"name": name, "userIds": _ids(tasks, members)})
    team = save_team(tasks.store, tasks.identity, draft)
    return tasks.say(encode_team(team), f"added {team.name}: {_shown(tasks, team)}")


def change_team(tasks: TaskContext, team: Team, action: str, words: tuple[str, ...]) -> int:
    """Take users in, let them go, or rename the team."""
    from ctrl_exec.tasks.people.teams import decode_team, encode_team, save_team

    if action == "rename":
        draft = decode_team({"name": words[0]}, team)
    else:
        named = _ids(tasks, words)
        missing = [each for each in named if action == "drop" and each not in team.members]
        if missing:
            raise NotFoundError(f"{tasks.name_of(missing[0])} is not in {team.name}")
        kept = [each for each in team.members if action == "add" or each not in named]
        draft = decode_team({"userIds": kept + (named if action == "add" else [])}, team)
    changed = save_team(tasks.store, tasks.identity, draft)
    return tasks.say(encode_team(changed), f"{changed.name}: {_shown(tasks, changed)}")


def list_teams(tasks: TaskContext) -> int:
    """Show all teams."""
    from ctrl_exec.tasks.people.teams import encode_team

    found = _all(tasks)
    rows = [(team.name, _shown(tasks, team), team.team_id) for team in found]
    document = {"ok": True, "teams": [encode_team(team) for team in found]}
    tasks.output.answer(document, lambda: tasks.output.table(("NAME", "USERS", "ID"), rows))
    return 0


def team_named(tasks: TaskContext, name: str) -> Team:
    """Give the team of that name, in whatever case, or of that id.

    Raises:
        NotFoundError: there is none.
    """
    from ctrl_exec.tasks.people.teams import find_team

    row = tasks.store.row("SELECT team_id FROM teams WHERE name = ? OR team_id = ?", (name, name))
    if row is None:
        raise NotFoundError(f"no team {name!r}; `ctrl-exec team list` shows them")
    return find_team(tasks.store, row["team_id"])


def team_name(tasks: TaskContext, team_id: str) -> str:
    """A team's name; its id if it is gone."""
    row = tasks.store.row("SELECT name FROM teams WHERE team_id = ?", (team_id,))
    return team_id if row is None else str(row["name"])


def _all(tasks: TaskContext) -> list[Team]:
    from ctrl_exec.tasks.people.teams import list_teams as read

    return tasks.all_pages(lambda after: read(tasks.store, limit=_PAGE, after_id=after), "team_id")


def _ids(tasks: TaskContext, names: tuple[str, ...]) -> list[str]:
    from ctrl_exec.cli.tasks_people import user_named

    return [user_named(tasks, name).user_id for name in names]


def _shown(tasks: TaskContext, team: Team) -> str:
    return ", ".join(sorted(tasks.name_of(each) for each in team.members)) or "nobody"


COMMANDS = {
    "team": Command(
        "make, change, list and remove teams of users, who share roles",
        execute_team,
        arguments=action_places(ACTIONS),
        options=CREDENTIAL_OPTIONS,
        actions=ACTIONS,
        description="`ctrl-exec project grant PROJECT TEAM ROLE --team` gives a team a role.",
        examples=('ctrl-exec team create "Night shift" alice bob', 'ctrl-exec team add "Night shift" carol'),
    ),
}
