"""The token endpoint: a password, a refresh token or a personal access token for an access token.

Owns grants, rotation and revocation. Knows no HTTP; its errors carry the words of the protocol.
Source: RFC 6749 §§4.3, 4.4, 5, 6; RFC 7009; RFC 9700 §4.14.2 for the re-use of refresh tokens.
"""

from __future__ import annotations

from ctrl_exec.common.errors import DeniedError, InvalidInputError, UnauthorizedError
from ctrl_exec.tasks.models import EXECUTOR, MANAGER, ROLES, Token
from ctrl_exec.tasks.people import sign_in, tokens
from ctrl_exec.tasks.people.identity import Identity, identity_of
from ctrl_exec.tasks.people.tokens import ACCESS, PERSONAL, REFRESH, SCOPES
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ctrl_exec.tasks.store import Store

ACCESS_LIFE_S = 3600
REFRESH_LIFE_S = 30 * 86400
_SECOND_NS = 10**9


class GrantError(InvalidInputError):
    """A grant is refused; `word` is one of RFC 6749 §5.2."""

    def __init__(self, detail: str, *, word: str = "invalid_request") -> None:
        super().__init__(detail)
        self.word = word


def grant(
    store: Store,
    form: Mapping[str, str],
    *,
    source_ip: str,
    client: tuple[str, str] | None,
    has_passwords: bool,
) -> dict[str, Any]:
    """The answer to a token request; `client` are the credentials of its `Authorization: Basic`.

    Raises: GrantError; ThrottledError after too many failed sign-ins.
    """
    kind = _required(form, "grant_type")
    if kind == "password" and has_passwords:
        return _by_password(store, form, source_ip)
    if kind == "refresh_token":
        return _by_refresh(store, form)
    if kind == "client_credentials":
        return _by_client(store, form, client)
    raise GrantError(f"grant_type {kind[:40]!r} is not served here", word="unsupported_grant_type")


def _required(form: Mapping[str, str], key: str) -> str:
    found = form.get(key, "")
    if not found:
        raise GrantError(f"{key} is missing")
    return found


def _by_password(store: Store, form: Mapping[str, str], source_ip: str) -> dict[str, Any]:
    username, password = _required(form, "username"), _required(form, "password")
    user = sign_in.sign_in(store, username, password, source_ip)
    if user is None:
        raise GrantError("the user name or the password is wrong", word="invalid_grant")
    identity = _identity(store, Token("", user.user_id, ACCESS))
    draft = Token(
        "", user.user_id, ACCESS, scopes=_scopes(form, identity), family_id=new_ulid(store.clock_ns())
    )
    return _issue(store, draft, is_refreshable=True)


def _by_refresh(store: Store, form: Mapping[str, str]) -> dict[str, Any]:
    known = tokens.find_secret(store, _required(form, "refresh_token"))
    if known is None or known.kind != REFRESH:
        raise GrantError("the refresh token is not known", word="invalid_grant")
    identity = _identity(store, known)
    scopes = _scopes(form, identity, known.scopes)
    draft = Token(
        "", known.user_id, ACCESS, scopes=scopes, project_ids=known.project_ids, family_id=known.family_id
    )
    # one step: of two who come at once the second must find what the first was given, to end it
    with store.writing():
        if tokens.is_alive(known, store.clock_ns()) and tokens.spend(store, known.token_id):
            return _issue(store, draft, is_refreshable=True)
    if known.spent_ns is not None or known.revoked_ns is None:
        # somebody has a copy: whoever of the two is honest signs in again
        tokens.revoke_family(store, known.family_id)
    raise GrantError("the refresh token is spent, revoked or expired", word="invalid_grant")


def _by_client(store: Store, form: Mapping[str, str], client: tuple[str, str] | None) -> dict[str, Any]:
    client_id, secret = client or (form.get("client_id", ""), form.get("client_secret", ""))
    personal = tokens.find_secret(store, secret) if secret else None
    is_right = personal is not None and personal.kind == PERSONAL and personal.token_id == client_id
    if personal is None or not is_right or not tokens.is_alive(personal, store.clock_ns()):
        detail = "expected client_id and client_secret to be the id and the value of a personal access token"
        raise GrantError(detail, word="invalid_client")
    tokens.note_use(store, personal)
    identity = _identity(store, personal)
    draft = Token(
        "",
        personal.user_id,
        ACCESS,
        scopes=_scopes(form, identity, personal.scopes),
        project_ids=personal.project_ids,
        expires_ns=personal.expires_ns,
        family_id=personal.token_id,
    )
    with store.writing():  # one that is revoked this moment gives nothing that outlives it
        if not tokens.is_alive(tokens.find_token(store, personal.token_id), store.clock_ns()):
            raise GrantError("the personal access token was revoked", word="invalid_client")
        return _issue(store, draft, is_refreshable=False)


def _identity(store: Store, token: Token) -> Identity:
    try:
        return identity_of(store, token)
    except UnauthorizedError as error:
        raise GrantError(str(error), word="invalid_grant") from error


def available_scopes(identity: Identity) -> tuple[str, ...]:
    """The scopes that somebody's roles can fill."""
    if identity.is_administrator:
        return SCOPES
    strongest = min((ROLES.index(role) for role in identity.roles.values()), default=len(ROLES))
    found = ["read", "write"]
    if strongest <= ROLES.index(EXECUTOR):
        found.append("execute")
    if strongest <= ROLES.index(MANAGER):
        found.append("run")
    return tuple(scope for scope in SCOPES if scope in found)


def _scopes(form: Mapping[str, str], identity: Identity, most: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What is asked for, or all there is. Raises: GrantError for more than that."""
    available = [scope for scope in available_scopes(identity) if not most or scope in most]
    if not available:  # a token without scopes would have all of them
        raise GrantError("none of the token's scopes is to be had any more", word="invalid_scope")
    asked = form.get("scope", "").split()
    for scope in asked:
        if scope not in available:
            raise GrantError(f"the scope {scope[:40]!r} is not to be had", word="invalid_scope")
    return tuple(asked or available)


def _issue(store: Store, draft: Token, *, is_refreshable: bool) -> dict[str, Any]:
    from ctrl_exec.common.value import replace

    now_ns = store.clock_ns()
    ends_ns = now_ns + ACCESS_LIFE_S * _SECOND_NS
    if draft.expires_ns is not None:
        ends_ns = min(ends_ns, draft.expires_ns)
    with store.writing():
        tokens.purge_tokens(store, now_ns)
        _, secret = tokens.create_token(store, replace(draft, expires_ns=ends_ns))
        answer: dict[str, Any] = {
            "access_token": secret,
            "token_type": "Bearer",
            "expires_in": (ends_ns - now_ns) // _SECOND_NS,
        }
        if is_refreshable:
            refresh = replace(draft, kind=REFRESH, expires_ns=now_ns + REFRESH_LIFE_S * _SECOND_NS)
            answer["refresh_token"] = tokens.create_token(store, refresh)[1]
    return answer | {"scope": " ".join(draft.scopes)}


def revoke(store: Store, form: Mapping[str, str]) -> None:
    """End a token, whatever it is; with a refresh token all that descends from its sign-in, with a personal
    one all that it made.

    One that is unknown is over already. Raises: GrantError without a token.
    """
    known = tokens.find_secret(store, _required(form, "token"))
    if known is None:
        return
    with store.writing():
        if known.kind == PERSONAL:
            tokens.revoke_line(store, known.token_id)
            return
        tokens.revoke_token(store, known.token_id)
        if known.kind == REFRESH:
            tokens.revoke_family(store, known.family_id)


def check_limits(identity: Identity, action: str) -> None:
    """Whether an action of the core is within the limits of the token, whoever decides about its user.

    The core knows no projects: a token that is confined to some does not reach it, but for what tells
    nothing of a run or an agent's doing (`api`).

    Raises: DeniedError.
    """
    identity.require_scope({"run": "run", "cancel": "run", "pairing": "admin"}.get(action, "read"))
    if identity.project_ids is not None and action != "api":
        raise _denied("a token that is limited to projects does not reach the core")


def _denied(detail: str) -> DeniedError:
    from ctrl_exec.common.hook import INSUFFICIENT_PRIVILEGE

    return DeniedError(INSUFFICIENT_PRIVILEGE, "insufficient privilege", detail)


def check_core(identity: Identity, action: str, submitter: str | None) -> None:
    """Whether a token permits an action of the core where no auth hook decides (`api_auth_default = token`).

    What one may by a role that edits tasks, one may directly too: managers run scripts and see what
    they themselves have run, by no task (`submitter`). All else is the administrators'.

    Raises: DeniedError.
    """
    check_limits(identity, action)
    if identity.has_all or action == "api":
        return
    is_manager = any(identity.has_role(project_id, MANAGER) for project_id in identity.visible or ())
    is_own = submitter is not None and submitter == identity.username
    if is_manager and (action in ("ping", "run") or (action in ("status", "cancel") and is_own)):
        return
    raise _denied(f"this token does not permit {action}")
