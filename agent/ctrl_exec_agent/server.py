"""Port 7443: who is asking, the table of routes, and the life of the server around them.

Owns the judgement of each request's peer, the answer to errors, and what a reload replaces. What a
request does is in `handlers` and `upkeep`.
"""

from __future__ import annotations

import os
import time

from ctrl_exec.common import process
from ctrl_exec.common.answer import ERROR_WORDS
from ctrl_exec.common.certificate import parse_certificate
from ctrl_exec.common.conversation import Timing
from ctrl_exec.common.errors import (
    CertificateError,
    ConfigError,
    CtrlExecError,
    InvalidInputError,
    MethodNotAllowedError,
    NotFoundError,
)
from ctrl_exec.common.http import ForkingServer, ParserLimits, ServerHooks, ServerSettings
from ctrl_exec.common.routing import Response, Route, Router
from ctrl_exec.common.tls import server_context
from ctrl_exec.common.value import replace
from ctrl_exec_agent import trust
from ctrl_exec_agent.admission import EXIT_TRUSTED, EXIT_UNTRUSTED, Admission
from ctrl_exec_agent.dry_run import ROUNDS, DryRun
from ctrl_exec_agent.generation import load_parts, warnings
from ctrl_exec_agent.handlers import Handlers, Peer, answer
from ctrl_exec_agent.upkeep import Upkeep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec.common.child import Child
    from ctrl_exec.common.conversation import Exchange
    from ctrl_exec.common.routing import Request
    from ctrl_exec.common.tls import Context
    from ctrl_exec_agent.generation import Parts, Source

_DRAIN_S = 2.0  # a script that runs goes on without us; there is nothing else to wait for
_KEPT_SHARE_PERCENT = 50
_BODY_LIMIT_BYTES = 4 << 20  # 512 KiB of arguments are six times that in JSON if all are control characters


class Application:
    """Answers requests with one generation of the configuration; runs in the children."""

    def __init__(self, parts: Parts, server_pid: int) -> None:
        self._parts = parts
        self._shown: tuple[bytes, Certificate] | None = None  # the certificate of this child's connection
        handlers = Handlers(parts)
        upkeep = Upkeep(parts, handlers, server_pid)
        self.router = Router(
            (
                Route("POST", "/run", "run", handlers.run),
                Route("POST", "/ping", "ping", handlers.ping),
                Route("GET", "/capabilities", "capabilities", handlers.capabilities),
                Route("GET", "/result/{reqid}", "result", handlers.result),
                Route("POST", "/cancel", "cancel", handlers.cancel),
                Route("POST", "/renew", "renew", upkeep.renew),
                Route("POST", "/renew-complete", "renew-complete", upkeep.renew_complete),
                Route("POST", "/rotate-serial", "rotate", upkeep.rotate_serial),
            )
        )

    def __call__(self, request: Request, child: Child) -> Response:
        """The answer to one request, after its peer was judged anew."""
        verdict = self.judge(request)
        if not verdict.is_trusted:
            child.exit_status = EXIT_UNTRUSTED
            return self._forbid(request, verdict)
        child.exit_status = EXIT_TRUSTED
        self._purge_if_due(request)
        return self.obey(Peer(verdict.dispatcher, verdict.serial, request.remote_ip), request)

    def obey(self, peer: Peer, request: Request) -> Response:
        """The answer to a request of a dispatcher that we trust."""
        try:
            match = self.router.match(request.method, request.path)
            return match.route.handler(peer, request, **match.parameters)
        except (InvalidInputError, NotFoundError, MethodNotAllowedError) as error:
            return self._refuse_request(request, error)

    def judge(self, request: Request) -> trust.Verdict:
        """Whether the peer, whose certificate's chain is right, is a dispatcher that we trust."""
        der = request.peer.certificate
        if der is None:
            return trust.Verdict(error=trust.NOT_TRUSTED, reason="no client certificate")
        try:
            if self._shown is None or self._shown[0] is not der:
                self._shown = (der, parse_certificate(der))
        except CertificateError as error:
            return trust.Verdict(error=trust.NOT_TRUSTED, reason=str(error))
        return trust.judge(self._shown[1], self._parts.config.trust_path, self._parts.config.revoked_path)

    def _forbid(self, request: Request, verdict: trust.Verdict) -> Response:
        is_revoked = verdict.error == trust.REVOKED
        self._parts.log.warning(
            "revoked-cert" if is_revoked else "serial-reject",
            peer=request.remote_ip, path=request.path, serial=verdict.serial, reason=verdict.reason,
        )  # fmt: skip
        document = {"error": verdict.error} | ({} if is_revoked else {"status": "forbidden"})
        return replace(answer(403, document), close=True)

    def _refuse_request(self, request: Request, error: CtrlExecError) -> Response:
        status = 400
        headers: tuple[tuple[str, str], ...] = ()
        if isinstance(error, MethodNotAllowedError):
            status, headers = 405, (("Allow", ", ".join(error.allow)),)
        elif isinstance(error, NotFoundError):
            status = 404
        self._parts.log.warning(
            "deny", peer=request.remote_ip, path=request.path, status=status, reason=str(error)
        )
        made = refuse(status, str(error))
        return replace(made, headers=(*made.headers, *headers))

    def _purge_if_due(self, request: Request) -> None:
        spool = self._parts.spool
        if not spool.is_purge_due(time.time()):
            return

        def purge() -> None:
            removed = spool.purge(time.time())
            if removed:
                self._parts.log.info("purge", removed=removed)

        process.detach(
            purge, close=(request.connection.fileno(),), keep_stderr=self._parts.log.target == "stderr"
        )


def refuse(status: int, detail: str) -> Response:
    """An error on the agent's wire."""
    made = answer(status, {"status": "error", "error": ERROR_WORDS.get(status, "error"), "detail": detail})
    return replace(made, headers=(*made.headers, ("Retry-After", "1"))) if status == 503 else made


class AgentServer:
    """The agent's process: listens, forks, reloads."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parts = load_parts(source)
        self._context = _tls_context(self._parts)
        self._admission = Admission(self._parts.config, self._parts.log)
        self._dry_run = _dry_run(self._parts)

    def serve(self) -> None:
        """Serve until SIGTERM.

        Raises: ServiceError if an address cannot be had.
        """
        hooks = ServerHooks(
            admit=self._admission.admit,
            on_ready=self._say_started,
            on_reload=self._reload,
            on_child_exit=self._admission.note_end,
            on_silent_end=self._admission.note_silence,
            refuse=refuse,
            note=self._note,
            on_tls_failure=self._note_tls_failure,
            meanwhile=self._go_through_the_motions,
        )
        for _ in range(ROUNDS):
            self._go_through_the_motions()
        server = ForkingServer(
            _settings(self._parts),
            Application(self._parts, os.getpid()),
            tls=lambda: self._context,
            log=self._parts.log,
            hooks=hooks,
            environment=self._source.environment,
        )
        server.serve()
        self._parts.log.info("stop")

    def _go_through_the_motions(self) -> None:
        self._dry_run()

    def _say_started(self, addresses: tuple[str, ...]) -> None:
        self._warn()
        self._parts.log.info(
            "start", address=addresses, host=self._parts.name, scripts=len(self._parts.allowlist.scripts)
        )

    def _reload(self) -> tuple[Application, ServerSettings]:
        """The next generation, complete or not at all. Raises: ConfigError, CertificateError."""
        parts = load_parts(self._source)
        context = _tls_context(parts)
        before, now = self._parts.config, parts.config
        self._parts, self._context, self._dry_run = parts, context, _dry_run(parts)
        self._admission.configure(now, parts.log)
        self._warn()
        if (before.bind, before.port) != (now.bind, now.port):
            parts.log.warning("config-warn", reason="bind and port take effect at the next start only")
        return Application(parts, os.getpid()), _settings(parts)

    def _warn(self) -> None:
        for reason in warnings(self._parts.config, self._parts.allowlist):
            self._parts.log.warning("config-warn", reason=reason)

    def _note(self, _child: Child, exchange: Exchange) -> None:
        if exchange.request is None:  # answered requests are logged by what they did
            self._parts.log.warning(
                "deny", peer=exchange.remote_ip, status=exchange.status, reason=exchange.detail or None
            )

    def _note_tls_failure(self, remote_ip: str, reason: str) -> None:
        self._parts.log.warning("tls-failure", peer=remote_ip, reason=reason)


def _tls_context(parts: Parts) -> Context:
    config = parts.config
    try:
        return server_context(
            config.cert_path,
            config.key_path,
            client_ca=config.ca_path,
            require_client=True,
            tickets=1,
            issuer=config.ca_path,
        )
    except CertificateError as error:
        raise ConfigError(str(error)) from error


def _dry_run(parts: Parts) -> DryRun:
    return DryRun(parts, lambda tame: Application(tame, os.getpid()))


def _settings(parts: Parts) -> ServerSettings:
    config = parts.config
    return ServerSettings(
        addresses=tuple((address, config.port) for address in config.bind),
        max_children=config.max_children,
        max_long=config.max_children,
        keepalive_share_percent=_KEPT_SHARE_PERCENT,
        drain_s=_DRAIN_S,
        drain_grace_s=0,
        limits=replace(ParserLimits(), body_bytes=_BODY_LIMIT_BYTES),
        timing=Timing(
            keepalive_idle_s=config.keepalive_idle,
            keepalive_requests=config.keepalive_requests,
        ),
    )
