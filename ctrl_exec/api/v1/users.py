"""`/api/v1/users`, `/api/v1/profile` and `/api/v1/personal-access-tokens`: who there is, and their tokens."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import check_ids, list_response, page_of
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.v1.asking import Asking

USER_KEYS = ("name", "password", "administratorFg", "enabledFg")
LIST_KEYS = ("q", "limit", "cursor")
TOKEN_KEYS = ("name", "expirationTs", "scopes", "projectIds")
TOKEN_LIST_KEYS = ("userId", "q", "limit", "cursor")


def create(asking: Asking) -> Response:
    """`POST /api/v1/users`."""
    from ctrl_exec.tasks.people.users import add_user, decode_user, encode_user

    user = add_user(asking.store, asking.identity, decode_user(asking.document))
    return json_response(201, encode_user(user), (("Location", f"/api/v1/users/{user.user_id}"),))


def index(asking: Asking) -> Response:
    """`GET /api/v1/users`."""
    from ctrl_exec.tasks.people.users import encode_user, list_users

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    found = list_users(asking.store, limit=limit + 1, after_id=cursor, having=query.get("q", ""))
    return list_response(found, limit, encode_user, lambda user: user.user_id)


def show(asking: Asking) -> Response:
    """`GET /api/v1/users/{userId}`."""
    from ctrl_exec.tasks.people.users import encode_user, find_user

    return json_response(200, encode_user(find_user(asking.store, asking.parameters["userId"])))


def amend(asking: Asking) -> Response:
    """`PATCH /api/v1/users/{userId}`."""
    from ctrl_exec.tasks.people.users import change_user, decode_user, encode_user, find_user

    current = find_user(asking.store, asking.parameters["userId"])
    user = change_user(asking.store, asking.identity, decode_user(asking.document, current))
    return json_response(200, encode_user(user))


def remove(asking: Asking) -> Response:
    """`DELETE /api/v1/users/{userId}`."""
    from ctrl_exec.tasks.people.users import remove_user

    remove_user(asking.store, asking.identity, asking.parameters["userId"])
    return Response(204)


def profile(asking: Asking) -> Response:
    """`GET /api/v1/profile`: who one is, and what one may."""
    from ctrl_exec.tasks.people.users import encode_user, find_user

    identity = asking.identity
    roles = [
        {"projectId": project_id, "role": role}
        for project_id, role in sorted(identity.roles.items())
        if identity.role_in(project_id) is not None
    ]
    document = {
        **encode_user(find_user(asking.store, identity.user_id)),
        "roles": roles,
        "scopes": list(identity.scopes),
        "projectIds": None if identity.project_ids is None else list(identity.project_ids),
    }
    return json_response(200, document)


def create_token(asking: Asking) -> Response:
    """`POST /api/v1/personal-access-tokens`: the only time its value is shown."""
    from ctrl_exec.tasks.people.personal import create_personal, decode_personal

    draft = decode_personal(asking.document, asking.store.clock_ns())
    token, secret = create_personal(asking.store, asking.identity, draft)
    document = {
        "personalAccessTokenId": token.token_id,
        "name": token.name,
        "creationTs": token.created_ns,
        "expirationTs": token.expires_ns,
        "token": secret,
    }
    location = ("Location", f"/api/v1/personal-access-tokens/{token.token_id}")
    return json_response(201, document, (location,))


def index_tokens(asking: Asking) -> Response:
    """`GET /api/v1/personal-access-tokens`: one's own; of an administrator also another user's."""
    from ctrl_exec.tasks.people.personal import encode_personal
    from ctrl_exec.tasks.people.tokens import list_personal

    query = query_of(asking.request, TOKEN_LIST_KEYS)
    limit, cursor = page_of(query)
    check_ids(query, "userId")
    user_id = query.get("userId", asking.identity.user_id)
    if user_id != asking.identity.user_id or asking.identity.project_ids is not None:
        asking.identity.require_administrator()
    having = query.get("q", "")
    found = list_personal(asking.store, user_id, limit=limit + 1, after_id=cursor, having=having)
    return list_response(found, limit, encode_personal, lambda token: token.token_id)


def revoke_token(asking: Asking) -> Response:
    """`DELETE /api/v1/personal-access-tokens/{personalAccessTokenId}`."""
    from ctrl_exec.tasks.people.personal import revoke_personal

    revoke_personal(asking.store, asking.identity, asking.parameters["personalAccessTokenId"])
    return Response(204)
