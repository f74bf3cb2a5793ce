"""`ctrl-exec user`, `ctrl-exec token`: who may use the task layer, and with what."""

from __future__ import annotations

from ctrl_exec.cli.command import CREDENTIAL_OPTIONS, Action, Command, Option, action_places
from ctrl_exec.cli.tasks_context import TaskContext, open_tasks
from ctrl_exec.common.errors import ConflictError, NotFoundError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.tasks.models import Token, User

USER_ACTIONS = (
    Action("add", "NAME", "a new user"),
    Action("list", "", "the users"),
    Action("show", "USER", "one with roles and teams"),
    Action("edit", "USER", "change what --name, --admin or --no-admin say"),
    Action("password", "USER", "another password"),
    Action("enable", "USER", "let them sign in again"),
    Action("disable", "USER", "end their tokens and let them in no more"),
    Action("remove", "USER", "forget one who owns no task"),
)
TOKEN_ACTIONS = (
    Action("create", "NAME", "a new one for the user of --username; prints its value, this once"),
    Action("list", "", "all of them, or those of --username"),
    Action("revoke", "TOKEN", "end one, by its id or its name"),
)
_PAGE = 500


def execute_user(context: Context, arguments: Arguments) -> int:
    """Do one of the actions on users."""
    action, names = arguments.words[0], arguments.words[1:]
    with open_tasks(context, arguments) as tasks:
        if action == "list":
            return list_users(tasks)
        if action == "add":
            return add_user(tasks, arguments)
        user = user_named(tasks, names[0])
        if action == "show":
            return show_user(tasks, user)
        return change_user(tasks, arguments, action, user)


def show_user(tasks: TaskContext, user: User) -> int:
    """Show a user, with the roles they have of their own and by teams."""
    from ctrl_exec.tasks.people.identity import roles_of
    from ctrl_exec.tasks.people.users import encode_user

    sql = "SELECT name FROM teams JOIN members USING (team_id) WHERE user_id = ? ORDER BY name"
    teams = [row["name"] for row in tasks.store.rows(sql, (user.user_id,))]
    roles = roles_of(tasks.store, user.user_id)
    shown = [{"projectId": project_id, "role": role} for project_id, role in sorted(roles.items())]
    return tasks.show(encode_user(user) | {"roles": shown, "teams": teams})


def list_users(tasks: TaskContext) -> int:
    """Show all users."""
    from ctrl_exec.tasks.people import users

    found = tasks.all_pages(
        lambda after: users.list_users(tasks.store, limit=_PAGE, after_id=after), "user_id"
    )
    document = {"ok": True, "users": [users.encode_user(user) for user in found]}
    rows = [
        (
            user.name,
            "administrator" if user.is_administrator else "-",
            "on" if user.is_enabled else "off",
            user.user_id,
        )
        for user in found
    ]
    tasks.output.answer(document, lambda: tasks.output.table(("NAME", "RIGHTS", "STATE", "ID"), rows))
    return 0


def add_user(tasks: TaskContext, arguments: Arguments) -> int:
    """Add a user with the password that is given, typed, or piped in."""
    from ctrl_exec.tasks.models import User
    from ctrl_exec.tasks.people import users
    from ctrl_exec.tasks.people.passwords import hash_password

    name = users.check_user_name(arguments.words[1])
    password = "" if arguments.flag("no-password") else hash_password(read_password(tasks, arguments))
    draft = User("", name, is_administrator=arguments.flag("admin"), password=password)
    user = users.add_user(tasks.store, tasks.identity, draft)
    words = f"added {user.name}" + (", an administrator" if user.is_administrator else "")
    document = {"ok": True, "user": users.encode_user(user)}
    tasks.output.answer(document, lambda: tasks.output.line(words))
    return 0


def change_user(tasks: TaskContext, arguments: Arguments, action: str, user: User) -> int:
    """Do one of the changes to one user."""
    from ctrl_exec.common.value import replace
    from ctrl_exec.tasks.people import users
    from ctrl_exec.tasks.people.passwords import hash_password

    if action == "remove":
        users.remove_user(tasks.store, tasks.identity, user.user_id)
    elif action == "edit":
        users.change_user(tasks.store, tasks.identity, edited(user, arguments))
    elif action == "password":
        password = hash_password(read_password(tasks, arguments))
        users.change_user(tasks.store, tasks.identity, replace(user, password=password))
    else:
        users.change_user(tasks.store, tasks.identity, replace(user, is_enabled=action == "enable"))
    document = {"ok": True, "user": user.name, "action": action}
    tasks.output.answer(document, lambda: tasks.output.line(f"{action}: {user.name}"))
    return 0


def edited(user: User, arguments: Arguments) -> User:
    """The user as the options change them.

    Raises:
        UsageError: they change nothing, or contradict each other.
    """
    from ctrl_exec.common.value import replace
    from ctrl_exec.tasks.people.users import check_user_name

    name, rises, falls = arguments.text("name"), arguments.flag("admin"), arguments.flag("no-admin")
    if rises == falls and (rises or name is None):
        raise UsageError("give --name, and one of --admin and --no-admin")
    user = user if name is None else replace(user, name=check_user_name(name))
    return replace(user, is_administrator=rises) if rises or falls else user


def read_password(tasks: TaskContext, arguments: Arguments) -> str:
    """The password from `--password-file`, typed twice on a terminal, or the first line of stdin.

    Raises:
        UsageError: the file cannot be read, or the two differ.
    """
    path = arguments.text("password-file")
    if path is not None:
        return tasks.context.first_line(path, "--password-file")
    stdin = tasks.context.stdin
    if not stdin.isatty():
        return tasks.context.first_line("-", "standard input")
    from getpass import getpass

    password = getpass("password: ", tasks.output.stderr)
    if getpass("once more: ", tasks.output.stderr) != password:
        raise UsageError("the two differ")
    return password


def user_named(tasks: TaskContext, name: str) -> User:
    """Give the user of that name.

    Raises:
        NotFoundError: there is none.
    """
    from ctrl_exec.tasks.people.users import find_user_by_name

    user = find_user_by_name(tasks.store, name)
    if user is None:
        raise NotFoundError(f"no user {name}; `ctrl-exec user list` shows them")
    return user


def execute_token(context: Context, arguments: Arguments) -> int:
    """Make, list or revoke personal access tokens."""
    action, words = arguments.words[0], arguments.words[1:]
    with open_tasks(context, arguments) as tasks:
        if action == "create":
            return create_token(tasks, arguments)
        if action == "list":
            return list_tokens(tasks, arguments)
        return revoke_token(tasks, words[0], arguments)


def revoke_token(tasks: TaskContext, word: str, arguments: Arguments) -> int:
    """End one, named by its id, or by a name that no other has.

    Raises:
        NotFoundError: there is none.
        ConflictError: several have that name.
    """
    from ctrl_exec.tasks.people.personal import revoke_personal

    named = [each for each in _tokens(tasks, None) if word in (each.token_id, each.name)]
    owners = arguments.text("username")
    if len(named) > 1 and owners is not None:
        named = [each for each in named if tasks.name_of(each.user_id).lower() == owners.lower()]
    if len(named) > 1:
        raise ConflictError(f"several tokens are called {word!r}: revoke it by its id, or add --username")
    if not named:
        raise NotFoundError(f"no token {word!r}; `ctrl-exec token list` shows them")
    revoke_personal(tasks.store, tasks.identity, named[0].token_id)
    return tasks.say({"revoked": named[0].token_id}, f"revoked {word}")


def create_token(tasks: TaskContext, arguments: Arguments) -> int:
    """Make a token for a user and print its value alone, this once."""
    from ctrl_exec.tasks.people.personal import create_personal, decode_personal, encode_personal

    name = arguments.text("username")
    if name is None:
        raise UsageError("token create needs --username USER: whose rights it has")
    owner = user_named(tasks, name)
    expires_s = arguments.duration_s("expires")
    wanted: dict[str, Any] = {
        "name": arguments.words[1],
        "scopes": list(arguments.many("scope")),
        "projectIds": list(arguments.many("project")),
    }
    if expires_s is not None:
        wanted["expirationTs"] = tasks.store.clock_ns() + int(expires_s * 10**9)
    draft = decode_personal(wanted, tasks.store.clock_ns())
    token, secret = create_personal(tasks.store, tasks.identity, draft, user_id=owner.user_id)
    document = {"ok": True, **encode_personal(token), "token": secret}
    tasks.output.answer(document, lambda: tasks.output.line(secret))
    return 0


def list_tokens(tasks: TaskContext, arguments: Arguments) -> int:
    """Show the tokens that were not revoked, without their values."""
    from ctrl_exec.tasks.people.personal import encode_personal

    name = arguments.text("username")
    user_id = None if name is None else user_named(tasks, name).user_id
    found = _tokens(tasks, user_id)
    document = {"ok": True, "tokens": [encode_personal(token) for token in found]}
    rows = [
        (token.token_id, token.name, tasks.name_of(token.user_id), tasks.time_of(token.expires_ns),
         tasks.time_of(token.used_ns))
        for token in found
    ]  # fmt: skip
    columns = ("ID", "NAME", "USER", "EXPIRES", "LAST USED")
    tasks.output.answer(document, lambda: tasks.output.table(columns, rows))
    return 0


def _tokens(tasks: TaskContext, user_id: str | None) -> list[Token]:
    from ctrl_exec.tasks.people.tokens import list_personal

    return tasks.all_pages(
        lambda after: list_personal(tasks.store, user_id, limit=_PAGE, after_id=after), "token_id"
    )


COMMANDS = {
    "user": Command(
        "add, list, change and remove users of the task layer",
        execute_user,
        arguments=action_places(USER_ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--admin",), "add, edit: an administrator, who may do everything"),
            Option(("--no-admin",), "edit: an administrator no more"),
            Option(("--name",), "edit: another name", "NAME"),
            Option(("--password-file",), "a file whose first line is the password", "FILE", completes="file"),
            Option(("--no-password",), "add: who signs in with tokens only"),
        ),
        actions=USER_ACTIONS,
        description="Without --password-file the password is typed, or read from standard input.",
        examples=("ctrl-exec user add alice --admin", "ctrl-exec user password alice"),
    ),
    "token": Command(
        "make, list and revoke personal access tokens",
        execute_token,
        arguments=action_places(TOKEN_ACTIONS),
        options=(
            *CREDENTIAL_OPTIONS,
            Option(("--expires",), "when it ends: 90d, 12h (default: never)", "TIME"),
            Option(
                ("--scope",),
                "what it may, again for more (default: all the user may)",
                "SCOPE",
                is_repeated=True,
                choices=("read", "execute", "write", "admin", "run"),
            ),
            Option(
                ("--project",),
                "the only project it is for, again for more",
                "ID",
                is_repeated=True,
                completes="project",
            ),
        ),
        actions=TOKEN_ACTIONS,
        description="`create` prints the token's value alone; it is shown this once.",
        examples=("ctrl-exec token create zabbix --username alice --expires 90d",),
    ),
}
