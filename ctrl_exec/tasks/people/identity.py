"""Who a request is from, and what they may: the token's user, their roles, the token's narrower limits.

Owns the one decision of the task layer about rights; every object is asked about here. Deny is the
default, and a project without a role does not exist. Must not know HTTP.
"""

from __future__ import annotations

from ctrl_exec.common.errors import DeniedError, NotFoundError, UnauthorizedError
from ctrl_exec.common.hook import INSUFFICIENT_PRIVILEGE
from ctrl_exec.common.value import field, value
from ctrl_exec.tasks.models import ADMINISTRATOR, ROLES, VIEWER
from ctrl_exec.tasks.people.tokens import ACCESS, PERSONAL, find_secret, find_token, is_alive, note_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.tasks.models import Token
    from ctrl_exec.tasks.store import Store

OF_A_TASK = "task"
"""Where the run of a task comes from, in its record: who may see that is the execution's to say."""
INVALID_TOKEN = "invalid_token"  # noqa: S105 - a word of RFC 6750 §3.1


@value
class Identity:
    """Somebody who is known, with their rights at this moment.

    `roles` are the strongest ones by project, own and by teams. Empty `scopes` mean all; `project_ids`
    limit a token to these projects (None: no limit), and with them nobody is an administrator.
    """

    user_id: str
    username: str
    is_administrator: bool = False
    roles: dict[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    project_ids: tuple[str, ...] | None = None
    token_id: str = ""
    source_ip: str = ""
    via: str = "http"

    def role_in(self, project_id: str) -> str | None:
        """The role in a project; None where the project does not exist for them."""
        if self.project_ids is not None and project_id not in self.project_ids:
            return None
        return ADMINISTRATOR if self.is_administrator else self.roles.get(project_id)

    @property
    def visible(self) -> tuple[str, ...] | None:
        """The projects they know of; None: all."""
        if self.is_administrator:
            return self.project_ids
        return tuple(each for each in self.roles if self.project_ids is None or each in self.project_ids)

    @property
    def has_all(self) -> bool:
        """Whether they are an administrator whom no token confines to projects."""
        return self.is_administrator and self.project_ids is None

    def has_role(self, project_id: str, least: str) -> bool:
        """Whether their role there is this one or a stronger one."""
        role = self.role_in(project_id)
        return role == ADMINISTRATOR or (role in ROLES and ROLES.index(role) <= ROLES.index(least))

    def require_role(self, project_id: str, least: str = VIEWER, *, what: str = "") -> None:
        """Raises: NotFoundError where the project does not exist for them; DeniedError for too little."""
        if self.role_in(project_id) is None:
            raise NotFoundError(what or f"no project {project_id[:80]}")
        if not self.has_role(project_id, least):
            raise DeniedError(
                INSUFFICIENT_PRIVILEGE,
                "insufficient privilege",
                f"the role {least} in {project_id} is needed",
            )

    def require_administrator(self) -> None:
        """Raises: DeniedError."""
        if not self.has_all:
            raise DeniedError(INSUFFICIENT_PRIVILEGE, "insufficient privilege", "an administrator is needed")

    def require_scope(self, scope: str) -> None:
        """Raises: DeniedError if the token was made for less."""
        if self.scopes and scope not in self.scopes:
            raise DeniedError(
                INSUFFICIENT_PRIVILEGE, "insufficient privilege", f"the token lacks the scope {scope}"
            )


def identify(store: Store, secret: str, *, source_ip: str = "", via: str = "http") -> Identity:
    """Who the secret of a token belongs to. Notes its use.

    Raises: UnauthorizedError: there is none, or it is unknown, expired, revoked, or its user is off.
    """
    if not secret:
        raise UnauthorizedError("a token is needed: Authorization: Bearer ctpat_…")
    token = find_secret(store, secret)
    if token is None or token.kind not in (PERSONAL, ACCESS):
        raise UnauthorizedError("the token is not known", challenge=INVALID_TOKEN)
    _require_alive(store, token)
    identity = identity_of(store, token, source_ip=source_ip, via=via)
    note_use(store, token)
    return identity


def _require_alive(store: Store, token: Token) -> None:
    if not is_alive(token, store.clock_ns()):
        word = "was revoked" if token.revoked_ns is not None else "has expired"
        raise UnauthorizedError(f"the token {word}", challenge=INVALID_TOKEN)


def renewed(store: Store, identity: Identity) -> Identity:
    """What somebody whose token is known may by now; for what lasts longer than a request.

    Raises: UnauthorizedError: the token is over, or its user is off.
    """
    try:
        token = find_token(store, identity.token_id)
    except NotFoundError as error:
        raise UnauthorizedError("the token is not known", challenge=INVALID_TOKEN) from error
    _require_alive(store, token)
    return identity_of(store, token, source_ip=identity.source_ip, via=identity.via)


def identity_of(store: Store, token: Token, *, source_ip: str = "", via: str = "http") -> Identity:
    """What the user of a token may with it. Raises: UnauthorizedError if the user is off."""
    user = store.row("SELECT * FROM users WHERE user_id = ?", (token.user_id,))
    if user is None or not user["is_enabled"]:
        raise UnauthorizedError("the token's user is off", challenge=INVALID_TOKEN)
    return Identity(
        user_id=token.user_id,
        username=user["name"],
        is_administrator=bool(user["is_administrator"]),
        roles=roles_of(store, token.user_id),
        scopes=token.scopes,
        project_ids=token.project_ids or None,
        token_id=token.token_id,
        source_ip=source_ip,
        via=via,
    )


def roles_of(store: Store, user_id: str) -> dict[str, str]:
    """A user's strongest role in each project, own or by a team."""
    sql = """
    SELECT project_id, role FROM roles WHERE user_id = ?
    UNION ALL SELECT project_id, role FROM roles JOIN members USING (team_id) WHERE members.user_id = ?
    """
    found: dict[str, str] = {}
    for row in store.rows(sql, (user_id, user_id)):
        known = found.get(row["project_id"])
        if known is None or ROLES.index(row["role"]) < ROLES.index(known):
            found[row["project_id"]] = row["role"]
    return found


def user_identity(store: Store, user_id: str, *, via: str = "scheduler") -> Identity | None:
    """What a user may without a token, such as a task's owner when the clock starts it; None if off."""
    user = store.row("SELECT * FROM users WHERE user_id = ? AND is_enabled", (user_id,))
    if user is None:
        return None
    is_administrator = bool(user["is_administrator"])
    return Identity(user_id, user["name"], is_administrator, roles_of(store, user_id), via=via)


def local_identity(store: Store, username: str) -> Identity:
    """Who works at the command line: files' permissions let them do anything; the name is for the records."""
    user = store.row("SELECT user_id, name FROM users WHERE name = ?", (username,))
    user_id, name = ("", username) if user is None else (user["user_id"], user["name"])
    return Identity(user_id, name, is_administrator=True, source_ip="127.0.0.1", via="cli")
