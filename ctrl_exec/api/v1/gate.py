"""The way into the task layer: token → body → auth hook → scope → handler.

Owns that order. A child opens the database when the first request to the task layer comes.
"""

from __future__ import annotations

from ctrl_exec.api import access
from ctrl_exec.api.v1.asking import ADMIN, Asking, TaskRoute, bearer_of, body_of, caller_of
from ctrl_exec.tasks.opening import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.figures import Figures
    from ctrl_exec.common.http import Child
    from ctrl_exec.common.routing import Match, Request, Response
    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.authority import Caller
    from ctrl_exec.tasks.identity import Identity

ACTION = "task"
"""What the auth hook is asked for."""


class Gate:
    """Lets requests in to the handlers of the task layer."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.store = open_store(dispatcher.config)

    def preload(self) -> None:
        """Have what most requests need loaded before the fork, where the task layer is in use at all.

        It is 30 ms for each child otherwise; an instance that only runs scripts does not pay for it.
        """
        import os

        if os.path.exists(self.store.path):
            import sqlite3  # noqa: F401 - for the children

            from ctrl_exec.tasks import definitions, identity, projects, users  # noqa: F401 - likewise

    def identify(self, request: Request) -> Identity:
        """Who asks. Raises: UnauthorizedError; InvalidInputError."""
        from ctrl_exec.tasks.identity import identify

        source_ip = access.source_address(request, self._dispatcher.config)
        return identify(self.store, bearer_of(request), source_ip=source_ip)

    def answer(self, request: Request, child: Child, match: Match, figures: Figures) -> Response:
        """The answer of a route of the task layer."""
        route = match.route
        assert isinstance(route, TaskRoute)
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
