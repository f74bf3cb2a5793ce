"""The way into the task layer: token → body → auth hook → scope → handler.

Owns that order. A child opens the database when the first request to the task layer comes.
"""

from __future__ import annotations

from ctrl_exec.api import access
from ctrl_exec.api.v1.asking import ADMIN, PUBLIC, Asking, TaskRoute, Visit, bearer_of, body_of, caller_of
from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import InvalidInputError, UnauthorizedError
from ctrl_exec.common.value import replace
from ctrl_exec.services.authority import is_own_token
from ctrl_exec.tasks.opening import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.figures import Figures
    from ctrl_exec.common.http import Child
    from ctrl_exec.common.routing import Match, Request, Response
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller, Submitter
    from ctrl_exec.tasks.people.identity import Identity

_PROVEN_FOR_S = 1.0
ACTION = "task"
"""What the auth hook is asked for."""


class Gate:
    """Lets requests in to the handlers of the task layer."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.store = open_store(dispatcher.config)
        self._proven: Identity | None = None
        self._proven_at = 0.0

    def preload(self) -> None:
        """Have what most requests need loaded before the fork, where the task layer is in use at all.

        It is 30 ms for each child otherwise; an instance that only runs scripts does not pay for it.
        """
        import os

        if os.path.exists(self.store.path):
            import sqlite3  # noqa: F401 - for the children

            from ctrl_exec.tasks.people import identity, users  # noqa: F401 - likewise

    def identify(self, request: Request) -> Identity:
        """Who asks. Raises: UnauthorizedError; InvalidInputError."""
        from ctrl_exec.tasks.people.identity import identify

        source_ip = access.source_address(request, self._dispatcher.config)
        return identify(self.store, bearer_of(request), source_ip=source_ip)

    def proven(self, caller: Caller) -> Caller:
        """A caller of the core; with a token of ours its user, by a proven name and without the token.

        Raises: UnauthorizedError; InvalidInputError if another name is claimed beside it.
        """
        self._proven = None
        if not caller.token or not is_own_token(caller.token):
            return caller
        from ctrl_exec.tasks.people.identity import identify

        identity = identify(self.store, caller.token, source_ip=caller.source_ip)
        if caller.auth == "claimed" and caller.username.lower() != identity.username.lower():
            raise InvalidInputError("username: expected the token's user, or none", field="username")
        self._proven, self._proven_at = identity, monotonic()
        return replace(caller, username=identity.username, token="", auth="token", forwarded_token="")

    def check_token(self, caller: Caller, action: str, submitter: Submitter | None) -> None:
        """Judge an action of the core by the token it came with (`api_auth_default = token`).

        Beside an auth hook only by the token's limits; its user's rights are the hook's matter.

        Raises: UnauthorizedError without one; DeniedError.
        """
        self._prove_again()
        if self._dispatcher.authority.has_hook:
            self._check_limits(action)
            return
        if caller.auth != "token" or self._proven is None:
            challenge = "invalid_token" if caller.token else ""
            raise UnauthorizedError("a token is needed: Authorization: Bearer ctpat_…", challenge=challenge)
        from ctrl_exec.tasks.people.identity import OF_A_TASK
        from ctrl_exec.tasks.people.oauth import check_core

        # what a task's script prints is in its log too, for those who may read it and without secrets
        is_direct = submitter is not None and submitter.source_ip != OF_A_TASK
        check_core(self._proven, action, submitter.username if submitter and is_direct else None)

    def _prove_again(self) -> None:
        """Whoever follows a run for long is asked about again: a token may be revoked meanwhile."""
        if self._proven is not None and monotonic() - self._proven_at > _PROVEN_FOR_S:
            from ctrl_exec.tasks.people.identity import renewed

            self._proven, self._proven_at = renewed(self.store, self._proven), monotonic()

    def _check_limits(self, action: str) -> None:
        if self._proven is not None:
            from ctrl_exec.tasks.people.oauth import check_limits

            check_limits(self._proven, action)

    def answer(self, request: Request, child: Child, match: Match, figures: Figures) -> Response:
        """The answer of a route of the task layer."""
        from ctrl_exec.tasks.parameters import pattern_time

        self._proven = None  # whoever asked the core before on this connection
        with pattern_time():
            return self._answer(request, child, match, figures)

    def _answer(self, request: Request, child: Child, match: Match, figures: Figures) -> Response:
        route = match.route
        assert isinstance(route, TaskRoute)
        if route.authorised_by == PUBLIC:
            caller = access.way_in(request)
            visit = Visit(request, child, self._dispatcher, caller, match.parameters, {}, figures, self.store)
            return route.handler(visit)
        identity = self.identify(request)
        access.check_media(request, request.header("origin") or "")
        document = body_of(request, route)
        caller = caller_of(identity, request, self._dispatcher.config)
        self._ask_hook(caller, request)
        identity.require_scope(route.scope)
        if route.scope == ADMIN:
            identity.require_administrator()
        asking = Asking(
            request,
            child,
            self._dispatcher,
            caller,
            match.parameters,
            document,
            figures,
            self.store,
            identity,
        )
        return route.handler(asking)

    def _ask_hook(self, caller: Caller, request: Request) -> None:
        """The auth hook has a say where there is one. Raises: DeniedError."""
        authority = self._dispatcher.authority
        if authority.has_hook:
            authority.check(caller, ACTION, reqid=request.reqid)
