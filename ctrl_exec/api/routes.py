"""The route table of the API: literal, complete, in the order `GET /` lists it.

Owns which path and method there is, which keys its body may have, and how it is authorised: by the
action `api` before its handler, by the operation it calls, or, for the static shell of `/docs`, not
at all. A test walks every line with every kind of credential.
"""

from __future__ import annotations

import ctrl_exec
from ctrl_exec.api import docs, fleet, information, listing, metrics, pairing, runs, watching
from ctrl_exec.api.v1.asking import TaskRoute
from ctrl_exec.api.v1.table import TASK_ROUTES
from ctrl_exec.common.routing import Response, Route, json_response
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.inquiry import Inquiry
    from ctrl_exec.config import Config

API = "api"
"""The action of informational endpoints, asked for before the handler."""
OPERATION = "operation"
"""The handler has the operation, or the authority itself, ask: after decoding (core §5)."""
PUBLIC = "public"
"""Holds no data; open once there is a hook, or the configured default is not to deny."""


@value
class ApiRoute(Route):
    """One line of the table. `keys` are those of its body beside the credentials."""

    authorised_by: str = API
    keys: tuple[str, ...] = ()
    needs_body: bool = False
    is_optional: bool = False


def index(inquiry: Inquiry) -> Response:
    """`GET /`: all endpoints that are on."""
    endpoints = [
        {"method": route.method, "path": route.pattern}
        for route in enabled_routes(inquiry.dispatcher.config)
        if route.pattern not in _UNLISTED
    ]
    return json_response(
        200,
        {
            "ok": True,
            "name": "ctrl-exec-api",
            "version": ctrl_exec.__version__,
            "spec": "/openapi.json",
            "live_spec": "/openapi-live.json",
            "endpoints": endpoints,
        },
    )


_UNLISTED = ("/", "/docs/{file}")

ROUTES = (
    ApiRoute("GET", "/", "index", index),
    ApiRoute("GET", "/health", "health", information.health),
    ApiRoute("POST", "/ping", "ping", fleet.ping_hosts, OPERATION, fleet.HOST_KEYS, needs_body=True),
    ApiRoute("POST", "/run", "run", runs.start_run, OPERATION, runs.RUN_KEYS, needs_body=True),
    ApiRoute("GET", "/discovery", "discovery", fleet.discover_hosts, OPERATION),
    ApiRoute("POST", "/discovery", "discovery-of", fleet.discover_hosts, OPERATION, fleet.HOST_KEYS),
    ApiRoute("GET", "/status/{reqid}", "status", runs.show_status, OPERATION),
    ApiRoute("GET", "/openapi.json", "openapi", information.static_spec),
    ApiRoute("GET", "/openapi-live.json", "openapi-live", information.live_spec),
    ApiRoute("GET", "/runs", "runs", listing.show_runs, OPERATION),
    ApiRoute("GET", "/runs/{reqid}/output", "run-output", watching.show_output, OPERATION),
    ApiRoute("POST", "/runs/{reqid}/cancel", "run-cancel", watching.cancel_run, OPERATION),
    ApiRoute("GET", "/metrics", "metrics", metrics.show_metrics),
    ApiRoute("GET", "/docs", "docs", docs.page, PUBLIC),
    ApiRoute("GET", "/docs/{file}", "docs-file", docs.asset, PUBLIC),
    ApiRoute("GET", "/agents", "agents", fleet.list_agents, OPERATION, is_optional=True),
    ApiRoute("GET", "/pairing", "pairing", pairing.list_requests, OPERATION, is_optional=True),
    ApiRoute(
        "POST", "/pairing/{id}/approve", "pairing-approve", pairing.approve, OPERATION,
        pairing.APPROVE_KEYS, needs_body=True, is_optional=True,
    ),
    ApiRoute(
        "POST", "/pairing/{id}/deny", "pairing-deny", pairing.deny, OPERATION,
        pairing.DENY_KEYS, is_optional=True,
    ),
)  # fmt: skip

ALL_ROUTES = (*ROUTES, *TASK_ROUTES)

FIGURES = (*(route.name for route in ROUTES), "task-layer")
"""What requests are counted by: each route of the core, and the task layer as one."""


PLACES = {route.name: len(ROUTES) for route in TASK_ROUTES} | {
    route.name: place for place, route in enumerate(ROUTES)
}
"""The place of each route's figure, by its name."""


def enabled_routes(config: Config) -> tuple[ApiRoute | TaskRoute, ...]:
    """The routes that are on; registry and pairing only with `pairing_api_approve`."""
    return tuple(route for route in ALL_ROUTES if config.pairing_api_approve or not route.is_optional)
