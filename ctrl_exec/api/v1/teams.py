"""`/api/v1/teams`."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import PAGE_KEYS, list_response, page_of
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.v1.asking import Asking

KEYS = ("name", "userIds")
LIST_KEYS = ("q", *PAGE_KEYS)


def create(asking: Asking) -> Response:
    """`POST /api/v1/teams`."""
    from ctrl_exec.tasks.people.teams import decode_team, encode_team, save_team

    team = save_team(asking.store, asking.identity, decode_team(asking.document))
    return json_response(201, encode_team(team), (("Location", f"/api/v1/teams/{team.team_id}"),))


def index(asking: Asking) -> Response:
    """`GET /api/v1/teams`."""
    from ctrl_exec.tasks.people.teams import encode_team, list_teams

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    found = list_teams(asking.store, limit=limit + 1, after_id=cursor, having=query.get("q", ""))
    return list_response(found, limit, encode_team, lambda team: team.team_id)


def show(asking: Asking) -> Response:
    """`GET /api/v1/teams/{teamId}`."""
    from ctrl_exec.tasks.people.teams import encode_team, find_team

    return json_response(200, encode_team(find_team(asking.store, asking.parameters["teamId"])))


def amend(asking: Asking) -> Response:
    """`PATCH /api/v1/teams/{teamId}`."""
    from ctrl_exec.tasks.people.teams import decode_team, encode_team, find_team, save_team

    current = find_team(asking.store, asking.parameters["teamId"])
    team = save_team(asking.store, asking.identity, decode_team(asking.document, current))
    return json_response(200, encode_team(team))


def remove(asking: Asking) -> Response:
    """`DELETE /api/v1/teams/{teamId}`."""
    from ctrl_exec.tasks.people.teams import remove_team

    remove_team(asking.store, asking.identity, asking.parameters["teamId"])
    return Response(204)
