"""`ctrl-exec-api`: the HTTP API daemon. Puts application and server together and serves.

Owns start, reload and stop of the daemon; what it answers is the application's, how it serves is the
server's.
"""

from __future__ import annotations

import os
import sys

import ctrl_exec
from ctrl_exec.api.application import LAYOUT, Application
from ctrl_exec.api.throttle import Throttle
from ctrl_exec.common.errors import CertificateError, ConfigError, CtrlExecError, ProgramError, UsageError
from ctrl_exec.common.http import ForkingServer, ServerHooks, ServerSettings, Timing
from ctrl_exec.common.log import Log
from ctrl_exec.common.process import detach, drop_privileges, seal_descriptors, use_default_sigchld
from ctrl_exec.common.server_settings import Understudy
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.tls import server_context
from ctrl_exec.common.value import replace
from ctrl_exec.config import load_config
from ctrl_exec.dispatcher import open_crew, open_dispatcher, warm_settings
from ctrl_exec.operations.status import recover
from ctrl_exec.services.authority import Caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ctrl_exec.common.conversation import Exchange
    from ctrl_exec.common.http import Child
    from ctrl_exec.common.server_settings import Application as Answering
    from ctrl_exec.common.tls import Context
    from ctrl_exec.config import Config
    from ctrl_exec.dispatcher import Dispatcher

PROGRAM = "ctrl-exec-api"
USAGE = f"usage: {PROGRAM} [--config FILE] [--version] [--help]\n"
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78
_UMASK = 0o007
_TICKETS = 1
_NO_PROGRAM = "/dev/null/hook"
_HOOK_ROUNDS = 24


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; gives the exit code."""
    use_default_sigchld()
    seal_descriptors()
    try:
        path, answer = _read_words(list(sys.argv[1:] if words is None else words))
    except UsageError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n{USAGE}")
        return EXIT_USAGE
    if answer:
        sys.stdout.write(answer)
        return 0
    path = path or os.environ.get("CTRL_EXEC_CONFIG", "")
    try:
        config = load_config(path or None)
        drop_privileges(config.service_user, config.service_group)
        run(config, path=path, environment=dict(os.environ))
    except CtrlExecError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return EXIT_CONFIG if isinstance(error, (ConfigError, CertificateError)) else EXIT_FAILED
    return 0


def _read_words(words: list[str]) -> tuple[str, str]:
    """The path of the configuration, and what to print instead of serving. Raises: UsageError."""
    path = ""
    while words:
        word = words.pop(0)
        if word == "--version":
            return path, f"{PROGRAM} {ctrl_exec.__version__}\n"
        if word in ("--help", "-h"):
            return path, USAGE
        name, equals, text = word.partition("=")
        if name != "--config" or not (equals or words):
            raise UsageError(f"{word!r} is not understood")
        path = text if equals else words.pop(0)
    return path, ""


def run(config: Config, *, path: str = "", environment: Mapping[str, str] | None = None) -> None:
    """Serve the API until SIGTERM or SIGINT. SIGHUP reads `path` again (nothing without a path).

    Raises: ServiceError if an address cannot be had; CertificateError; ConfigError.
    """
    use_default_sigchld()
    os.umask(_UMASK)
    Daemon(config, path, dict(environment or {})).serve()


class Daemon:
    """The API's parent process."""

    def __init__(self, config: Config, path: str, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = environment
        self._throttle = Throttle()
        self._config = config
        self._context = tls_context(config)
        self._application = self._make_application(config)
        self._crew = open_crew(config, self._application.log)

    def _make_application(self, config: Config) -> Application:
        log = Log(PROGRAM, config.log_target, config.log_format)
        return Application(config, log, self._throttle, self._environment)

    def serve(self) -> None:
        """Listen, recover what an earlier process left, serve, and say goodbye."""
        log = self._application.log
        start_recovery(self._application.dispatcher)
        self._crew.start(warm_settings(self._config))
        try:
            self._make_server().serve()
        finally:
            self._crew.retire()
        log.info("api-stop")

    def _make_server(self) -> ForkingServer:
        log = self._application.log
        return ForkingServer(
            server_settings(self._config),
            self._application,
            tls=lambda: self._context,
            log=log,
            hooks=ServerHooks(
                on_ready=self._say_started,
                on_reload=self._reload,
                on_sigchld=self._crew.tend,
                parent_fds=self._crew.descriptors,
                note=self._note,
                understudy=lambda: make_understudy(self._config),
                on_tls_failure=lambda ip, reason: log.info("tls-failure", peer=ip, reason=reason),
            ),
            environment=self._environment,
        )

    def _note(self, child: Child, exchange: Exchange) -> None:
        self._application.note(child, exchange)

    def _say_started(self, addresses: tuple[str, ...]) -> None:
        log, config = self._application.log, self._config
        log.info("api-start", address=addresses, version=ctrl_exec.__version__, tls=self._context is not None)
        exposed = [each for each in addresses if not _is_guarded(each)]
        if self._context is None and exposed:
            log.warning("api-start", warning="plain HTTP beyond this machine: set api_cert", address=exposed)
        if not config.auth_hook and config.api_auth_default == "allow":
            log.warning("api-start", warning="anybody may run anything: api_auth_default = allow")

    def _reload(self) -> tuple[Answering, ServerSettings]:
        """The next generation, complete or not at all. Raises: ConfigError, CertificateError."""
        config = load_config(self._path) if self._path else self._config
        context = tls_context(config)
        application = self._make_application(config)
        before = self._config
        if (before.api_bind, before.api_port, before.api_socket) != (
            config.api_bind, config.api_port, config.api_socket,
        ):  # fmt: skip
            application.log.warning("reload", warning="addresses take effect at the next start only")
        self._config, self._context, self._application = config, context, application
        self._crew.start(warm_settings(config))  # the old ones end with their last job
        return application, server_settings(config)


def make_understudy(config: Config) -> Understudy:
    """The API for the rehearsal: open to all, without a hook, and its log goes nowhere."""
    from io import StringIO

    log = Log(PROGRAM, "stderr", config.log_format, stream=StringIO())
    if config.auth_hook:
        _rehearse_hook(replace(config, auth_hook=_NO_PROGRAM), log)
    tame = replace(config, auth_hook="", api_auth_default="allow", agent_keepalive=0)
    application = Application(tame, log, Throttle(), {})
    return Understudy(application, application.note)


def _rehearse_hook(config: Config, log: Log) -> None:
    """Ask a hook that can't be started, so that the way there is a trodden one when children ask the real."""
    authority = open_dispatcher(config, log, environment={}).authority
    for _ in range(_HOOK_ROUNDS):
        with suppress(CtrlExecError):
            authority.check(Caller(username="a", token="b"), "api", reqid="0123456789abcdef")  # noqa: S106


def start_recovery(dispatcher: Dispatcher) -> None:
    """Have a process of its own take over the runs whose carriers are gone; the parent waits for none.

    Before there are listening sockets, which it would keep open.
    """

    def work() -> None:
        found = recover(dispatcher)
        if found.completed or found.unfinished:
            dispatcher.log.info("recovery", completed=found.completed, unfinished=found.unfinished)

    try:
        detach(work, keep_stderr=dispatcher.config.log_target == "stderr")
    except ProgramError as error:
        dispatcher.log.error("recovery", error=str(error))


def tls_context(config: Config) -> Context | None:
    """The context of `api_cert` and `api_key`, None without them. Raises: CertificateError."""
    if not config.api_cert:
        return None
    client_ca = config.api_client_ca or None
    return server_context(
        config.api_cert, config.api_key, client_ca=client_ca, require_client=bool(client_ca), tickets=_TICKETS
    )


def server_settings(config: Config) -> ServerSettings:
    """What the configuration says of the server."""
    return ServerSettings(
        addresses=tuple((address, config.api_port) for address in config.api_bind),
        unix_socket=config.api_socket,
        unix_group=config.api_socket_group,
        max_children=config.api_max_children,
        max_long=config.api_max_long,
        max_per_ip=config.api_max_per_ip,
        drain_s=config.api_drain,
        counter_count=LAYOUT.count,
        log_prefix="api-",
        timing=Timing(
            keepalive_idle_s=config.api_keepalive_idle, keepalive_requests=config.api_keepalive_requests
        ),
    )


def _is_guarded(address: str) -> bool:
    return address.startswith(("127.", "[::1]", "/"))
