"""Personal access tokens: made for a user by themselves or by the command line, listed, revoked.

Owns their form on the wire and the rule that a token never makes one that may more than itself.
"""

from __future__ import annotations

from ctrl_exec.common.errors import NotFoundError, UnauthorizedError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.models import Token
from ctrl_exec.tasks.people import tokens
from ctrl_exec.tasks.people.identity import INVALID_TOKEN
from ctrl_exec.tasks.people.tokens import PERSONAL, SCOPES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

_MOST_PROJECTS = 1000


def decode_personal(document: dict[str, Any], now_ns: int) -> Token:
    """The token that a body describes. Raises: InvalidFieldsError."""
    form = Form(document)
    expires_ns = form.whole("expirationTs", 0, default=None)
    if expires_ns is not None and expires_ns <= now_ns:
        form.refuse("expirationTs", "expected a time to come, in nanoseconds since the epoch")
    scopes = form.strings("scopes", (), most=len(SCOPES))
    if not set(scopes) <= set(SCOPES):
        form.refuse("scopes", "expected of " + ", ".join(SCOPES))
    draft = Token(
        token_id="",
        user_id="",
        kind=PERSONAL,
        name=form.name(),
        scopes=scopes,
        project_ids=form.strings("projectIds", (), most=_MOST_PROJECTS),
        expires_ns=expires_ns,
    )
    form.finish()
    return draft


def encode_personal(token: Token) -> dict[str, Any]:
    """The token on the wire, without its value."""
    return {
        "personalAccessTokenId": token.token_id,
        "name": token.name,
        "creationTs": token.created_ns,
        "expirationTs": token.expires_ns,
        "lastUsedTs": token.used_ns,
        "userId": token.user_id,
        "scopes": list(token.scopes),
        "projectIds": list(token.project_ids),
    }


def create_personal(
    store: Store, identity: Identity, draft: Token, *, user_id: str = ""
) -> tuple[Token, str]:
    """A new token and its value, for oneself, or by an administrator for another user.

    Raises: InvalidFieldsError for scopes or projects beyond one's own; NotFoundError; DeniedError.
    """
    owner = user_id or identity.user_id
    if owner != identity.user_id:
        identity.require_administrator()
    confined = _confined(identity, draft)
    with store.writing():
        confined = _descended(store, identity, confined)
        for project_id in confined.project_ids:
            identity.require_role(project_id)
            if store.row("SELECT 1 FROM projects WHERE project_id = ?", (project_id,)) is None:
                raise NotFoundError(f"no project {project_id[:80]}")
        if store.row("SELECT 1 FROM users WHERE user_id = ?", (owner,)) is None:
            raise NotFoundError(f"no user {owner[:40]}")
        token, secret = tokens.create_token(store, replace(confined, user_id=owner))
        act = ("create", "personalAccessToken", token.token_id)
        audit.record(store, identity, act, after=encode_personal(token))
    return token, secret


def _confined(identity: Identity, draft: Token) -> Token:
    """The draft within the limits of the token it is asked for with, which are also its defaults."""
    for scope in draft.scopes:
        identity.require_scope(scope)
    return replace(
        draft,
        scopes=draft.scopes or identity.scopes,
        project_ids=draft.project_ids or identity.project_ids or (),
    )


def _descended(store: Store, identity: Identity, draft: Token) -> Token:
    """The draft as a child of the personal token it is asked for with: it ends no later than that.

    Raises: UnauthorizedError if that was revoked meanwhile: nothing may descend from it any more.
    """
    if not identity.token_id:
        return draft
    maker = tokens.find_root(store, identity.token_id)
    if not tokens.is_alive(maker or tokens.find_token(store, identity.token_id), store.clock_ns()):
        raise UnauthorizedError("the token was revoked", challenge=INVALID_TOKEN)
    if maker is None:
        return draft
    ends = [each for each in (draft.expires_ns, maker.expires_ns) if each is not None]
    return replace(draft, maker_id=maker.token_id, expires_ns=min(ends, default=None))


def revoke_personal(store: Store, identity: Identity, token_id: str) -> None:
    """End a token of one's own, or as administrator anybody's, and all it has made. Raises: NotFoundError."""
    with store.writing():
        token = tokens.find_token(store, token_id)
        is_theirs = token.user_id == identity.user_id and identity.project_ids is None
        if token.kind != PERSONAL or token.revoked_ns is not None or not (is_theirs or identity.has_all):
            raise NotFoundError(f"no personal access token {token_id[:40]}")
        tokens.revoke_line(store, token_id)
        act = ("revoke", "personalAccessToken", token_id)
        audit.record(store, identity, act, before=encode_personal(token))
