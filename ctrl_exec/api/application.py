"""From request to response: the order of checks a client can observe (core §5), then the handler.

    limits and parser (the server) → origin, host → no hook and deny → throttle → route → decode
    → authorise → handler

Owns that order and nothing of what happens at each step. One object is one generation of the
configuration; it is made in the parent and used in the children.
"""

from __future__ import annotations

from ctrl_exec.api import access
from ctrl_exec.api.errors import error_response
from ctrl_exec.api.figures import Figures, Layout
from ctrl_exec.api.inquiry import Inquiry, decode_body
from ctrl_exec.api.routes import ALL_ROUTES, API, FIGURES, PLACES, ApiRoute, enabled_routes
from ctrl_exec.api.v1.asking import TaskRoute, is_task_path
from ctrl_exec.api.v1.gate import Gate
from ctrl_exec.common.errors import (
    CtrlExecError,
    DeniedError,
    InvalidInputError,
    MethodNotAllowedError,
    NotFoundError,
)
from ctrl_exec.common.hook import BAD_CREDENTIALS
from ctrl_exec.common.messages import parse_object
from ctrl_exec.common.patterns import compile_all
from ctrl_exec.common.routing import Response, Router
from ctrl_exec.common.value import replace
from ctrl_exec.dispatcher import open_dispatcher, warm_transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec.api.throttle import Throttle
    from ctrl_exec.common.conversation import Exchange
    from ctrl_exec.common.hook import HookVerdict
    from ctrl_exec.common.http import Child
    from ctrl_exec.common.log import Log
    from ctrl_exec.common.routing import Match, Request
    from ctrl_exec.config import Config
    from ctrl_exec.services.authority import Caller, Submitter

LAYOUT = Layout(FIGURES)
_NO_ROUTE = len(FIGURES)
_EVERYWHERE = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


class Application:
    """The API for one configuration."""

    def __init__(self, config: Config, log: Log, throttle: Throttle, environment: Mapping[str, str]) -> None:
        self.config = config
        self.log = log
        self.dispatcher = open_dispatcher(
            config,
            log,
            environment=environment,
            transport=warm_transport(config),
            token_check=self._check_token,
            on_verdict=self._note_verdict,
        )
        self._router = Router(ALL_ROUTES)
        self._gate = Gate(self.dispatcher)
        self._enabled = frozenset(route.name for route in enabled_routes(config))
        self._throttle = throttle
        self._figures = Figures(LAYOUT)
        self._route = _NO_ROUTE
        self._load_parts()
        self._authority = self.dispatcher.authority

    def _load_parts(self) -> None:
        """Have the parts made and their modules loaded before the fork, where all children share them."""
        self.dispatcher.prepare()
        compile_all()
        self._gate.preload()

    def __call__(self, request: Request, child: Child) -> Response:
        """The answer to one request. Runs in a child."""
        self._figures.child = child
        self._route = _NO_ROUTE
        try:
            response = self._answer(request, child)
        except CtrlExecError as error:
            response = self._refuse(request, error)
        if request.header("origin") is None:
            return response
        cors = access.cors_headers(request, self.config)
        return replace(response, headers=(*response.headers, *cors)) if cors else response

    def _answer(self, request: Request, child: Child) -> Response:
        origin = access.check_way(request, self.config)
        if self._authority.is_closed and not is_task_path(request.path):
            self._authority.require_open(access.way_in(request))
        if self._throttle.has_noted():
            self._throttle.check(self._throttled_as(request))
        if request.method == "OPTIONS":
            return self._options(request)
        match = self._match(request)
        route = match.route
        self._route = PLACES[route.name]
        if isinstance(route, TaskRoute):
            return self._gate.answer(request, child, match, self._figures)
        assert isinstance(route, ApiRoute)
        access.check_media(request, origin)
        document = decode_body(request, route.keys) if request.body or route.needs_body else {}
        caller = self._gate.proven(access.identify(request, self.config, document))
        if route.authorised_by == API:
            self._authority.check(caller, "api", reqid=request.reqid)
        return route.handler(
            Inquiry(request, child, self.dispatcher, caller, match.parameters, document, self._figures)
        )

    def _match(self, request: Request) -> Match:
        try:
            match = self._router.match(request.method, request.path)
            if match.route.name not in self._enabled:
                raise NotFoundError(f"{match.route.pattern} is off (pairing_api_approve)")
            return match
        except (NotFoundError, MethodNotAllowedError) as error:
            # what there is and is not is for those who may ask at all
            self._authorise_bare(request)
            if request.method == "TRACE" and isinstance(error, NotFoundError):
                raise MethodNotAllowedError("TRACE", request.path, _EVERYWHERE) from error
            raise

    def _options(self, request: Request) -> Response:
        """What the path allows; a browser's preflight brings no credentials and is told no more."""
        try:
            allow = _EVERYWHERE if request.path == "*" else self._router.allowed(request.path)
        except NotFoundError:
            self._authorise_bare(request)
            raise
        headers = (("Allow", ", ".join(allow)),)
        if access.is_preflight(request, self.config):
            return Response(204, (*headers, *access.preflight_headers(allow)))
        self._authorise_bare(request)
        return Response(204, headers)

    def _authorise_bare(self, request: Request) -> None:
        """Ask for the action `api` with what credentials can be made out; the task layer has its own.

        Raises: DeniedError; UnauthorizedError.
        """
        if is_task_path(request.path):
            self._gate.identify(request)
            return
        self.dispatcher.authority.check(self._bare_caller(request), "api", reqid=request.reqid)

    def _bare_caller(self, request: Request) -> Caller:
        try:
            document = parse_object(request.body) if request.body else {}
            return self._gate.proven(access.identify(request, self.config, document))
        except InvalidInputError:
            return replace(access.way_in(request), source_ip=access.source_address(request, self.config))

    def _refuse(self, request: Request, error: CtrlExecError) -> Response:
        if isinstance(error, DeniedError) and error.code == BAD_CREDENTIALS:
            self._throttle.note(self._throttled_as(request))
        response = error_response(error, is_generic=self.config.auth_deny_generic)
        if response.status >= 500 and response.status != 503:
            self.log.error("api-request", error=f"{type(error).__name__}: {error}", reqid=request.reqid)
        return response

    def _throttled_as(self, request: Request) -> str:
        uid = request.peer.unix_uid
        return access.source_address(request, self.config) if uid is None else f"uid {uid}"

    def _check_token(self, caller: Caller, action: str, submitter: Submitter | None) -> None:
        self._gate.check_token(caller, action, submitter)

    def _note_verdict(self, verdict: HookVerdict) -> None:
        self._figures.note_hook(verdict)

    def note(self, child: Child, exchange: Exchange) -> None:
        """Log and count one exchange, refused ones included; the server calls it in the child."""
        route = self._route if exchange.request is not None else _NO_ROUTE
        self._figures.child = child
        self._figures.note_request(route, exchange.status, exchange.duration_s)
        self.log.info(
            "api-request",
            method=exchange.method or None,
            path=exchange.path[:500] or None,
            status=exchange.status,
            ms=round(exchange.duration_s * 1000),
            peer=exchange.remote_ip,
            reqid=exchange.reqid,
            detail=exchange.detail or None,
        )
