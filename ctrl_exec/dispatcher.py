"""The dispatcher: its parts, put together in one place from one configuration.

Owns the wiring and nothing else. Each part is made when it is first asked for, so that a command
that needs one of them pays for one of them.
"""

from __future__ import annotations

import os

from ctrl_exec.common import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec.common.hook import HookSettings, HookVerdict
    from ctrl_exec.common.log import Log
    from ctrl_exec.config import Config
    from ctrl_exec.services.agent_client import AgentClient
    from ctrl_exec.services.authority import Authority, Caller, Submitter
    from ctrl_exec.services.fanout import FanOutSettings
    from ctrl_exec.services.idempotency import IdempotencyKeys
    from ctrl_exec.services.locks import ScriptLocks
    from ctrl_exec.services.registry import Registry
    from ctrl_exec.services.results import ResultStore
    from ctrl_exec.services.run_index import RunIndex
    from ctrl_exec.services.transport import Transport
    from ctrl_exec.services.warm_crew import WarmCrew
    from ctrl_exec.services.warm_worker import WarmSettings

_CERTIFICATE_LIMIT_BYTES = 1 << 20


class Dispatcher:
    """The parts that operations work with.

    `environment` is the process's own, for the auth hook's `auth_hook_env`; `token_check` is where
    the task layer's tokens come in; `on_verdict` is told what the hook said; `transport` replaces
    the network in tests, and fresh connections in a daemon (`warm_transport`); `clock` gives the epoch
    second.
    """

    def __init__(
        self,
        config: Config,
        log: Log,
        *,
        environment: Mapping[str, str],
        transport: Transport | None = None,
        token_check: Callable[[Caller, str, Submitter | None], None] | None = None,
        on_verdict: Callable[[HookVerdict], None] | None = None,
        clock: Callable[[], int] = clock.epoch_now,
    ) -> None:
        self.config = config
        self.log = log
        self.clock = clock
        self._environment = environment
        self._transport = transport
        self._token_check = token_check
        self._on_verdict = on_verdict
        self._registry: Registry | None = None
        self._authority: Authority | None = None
        self._locks: ScriptLocks | None = None
        self._results: ResultStore | None = None
        self._run_index: RunIndex | None = None
        self._idempotency_keys: IdempotencyKeys | None = None
        self._agents: AgentClient | None = None
        self._learnt: dict[str, str] = {}
        self._home: str | None = None
        self._serial = IdentitySerial(config.cert_path)

    @property
    def environment(self) -> Mapping[str, str]:
        """The process's own."""
        return self._environment

    @property
    def registry(self) -> Registry:
        """Which agents are paired."""
        if self._registry is None:
            from ctrl_exec.services.registry import Registry

            config = self.config
            owner, contact_owner = _owners(config)
            self._registry = Registry(
                config.agents_dir,
                config.revoked_path,
                config.contacts_dir,
                owner=owner,
                contact_owner=contact_owner,
            )
        return self._registry

    @property
    def authority(self) -> Authority:
        """Who may do what."""
        if self._authority is None:
            from ctrl_exec.services.authority import Authority, AuthoritySettings

            config = self.config
            settings = AuthoritySettings(
                hook=self._hook_settings if config.auth_hook else None,
                default=config.api_auth_default,
                forwards_token=config.forward_token != "never",  # noqa: S105 - a mode, no password
                dispatcher=config.dispatcher_id,
                dispatcher_serial=self._serial,
                token_check=self._token_check,
                on_verdict=self._on_verdict,
            )
            self._authority = Authority(settings, self.log)
        return self._authority

    @property
    def locks(self) -> ScriptLocks:
        """The locks on (host, script)."""
        if self._locks is None:
            from ctrl_exec.services.locks import ScriptLocks

            self._locks = ScriptLocks(self.config.locks_dir)
        return self._locks

    @property
    def results(self) -> ResultStore:
        """The run records."""
        if self._results is None:
            from ctrl_exec.services.change_list import change_list_of
            from ctrl_exec.services.results import ResultStore

            config = self.config
            self._results = ResultStore(
                config.runs_dir, config.run_retention, on_change=change_list_of(config.runs_dir).note
            )
        return self._results

    @property
    def idempotency_keys(self) -> IdempotencyKeys:
        """What was begun under which key."""
        if self._idempotency_keys is None:
            from ctrl_exec.services.idempotency import IdempotencyKeys

            self._idempotency_keys = IdempotencyKeys(self.config.runs_dir + "/keys", self.clock)
        return self._idempotency_keys

    @property
    def run_index(self) -> RunIndex:
        """Which runs there are."""
        if self._run_index is None:
            from ctrl_exec.services.run_index import RunIndex

            self._run_index = RunIndex(self.config.runs_dir)
        return self._run_index

    @property
    def agents(self) -> AgentClient:
        """What speaks with the agents."""
        if self._agents is None:
            self._agents = self._open_agents()
        return self._agents

    def _open_agents(self) -> AgentClient:
        from ctrl_exec.services.agent_client import AgentClient, ClientSettings

        config, registry = self.config, self.registry
        return AgentClient(
            self._transport or self._open_transport(),
            ClientSettings(
                read_timeout_s=config.read_timeout,
                run_deadline_s=config.run_deadline,
                max_run_output_bytes=config.max_run_output,
                keeps_connections=getattr(self._transport, "keeps_connections", False),
            ),
            revoked=lambda: frozenset(each.fingerprint for each in registry.revocations()),
            registered=lambda: frozenset(each.fingerprint for each in registry.records()),
            learn=self._learn_key,
        )

    def _learn_key(self, name: str, shown: Certificate) -> None:
        """Bind an imported record to the key it showed; one key is one agent's."""
        facts = {"host": name, "fingerprint": shown.fingerprint, "serial": shown.serial}
        owner = self._learnt.setdefault(shown.fingerprint, name)
        if owner != name:
            self.log.warning("ping", error=f"{owner} has shown the same key", **facts)
        elif self.registry.learn_fingerprint(name, shown.fingerprint, shown.serial):
            self.log.info("ping", note="key recorded on first contact", **facts)
        else:
            self.log.warning("ping", error="the key of this contact could not be recorded", **facts)

    def _open_transport(self) -> Transport:
        from ctrl_exec.services.fanout import FanOut

        return FanOut(fan_out_settings(self.config))

    def _home_of_ours(self) -> str:
        if self._home is None:
            self._home = _home()
        return self._home

    def prepare(self) -> None:
        """Have the parts made and read what does not change: a daemon's children then find it in memory."""
        for part in ("registry", "authority", "locks", "results", "agents"):
            getattr(self, part)
        if self.config.auth_hook:
            self._home_of_ours()
            self._serial()

    def _hook_settings(self) -> HookSettings:
        """The hook as configured now; its environment file is read at each question. Raises: ConfigError."""
        from ctrl_exec.common.hook import HookSettings, hook_environment

        config = self.config
        return HookSettings(
            path=config.auth_hook,
            timeout_s=config.auth_hook_timeout,
            environment=hook_environment(
                config.auth_hook_env, config.auth_hook_env_file, self._environment, self._home_of_ours()
            ),
            passes_large_on_stdin=config.auth_hook_large == "stdin",
        )


def open_dispatcher(
    config: Config,
    log: Log,
    *,
    environment: Mapping[str, str] | None = None,
    transport: Transport | None = None,
    token_check: Callable[[Caller, str, Submitter | None], None] | None = None,
    on_verdict: Callable[[HookVerdict], None] | None = None,
) -> Dispatcher:
    """The dispatcher of a configuration; opens nothing yet."""
    inherited = dict(os.environ) if environment is None else environment
    return Dispatcher(
        config,
        log,
        environment=inherited,
        transport=transport,
        token_check=token_check,
        on_verdict=on_verdict,
    )


def fan_out_settings(config: Config) -> FanOutSettings:
    """How agents are connected to."""
    from ctrl_exec.services.fanout import FanOutSettings

    return FanOutSettings(
        identity=config.cert_path,
        key=config.key_path,
        ca=config.ca_cert_path,
        connect_timeout_s=config.connect_timeout,
        max_parallel=config.max_parallel,
    )


def warm_transport(config: Config) -> Transport | None:
    """The transport over the connections that a daemon's fan-out workers keep; None if they keep none."""
    if not config.agent_keepalive:
        return None
    from ctrl_exec.services.fanout import FanOut
    from ctrl_exec.services.warm import WarmTransport, worker_count

    return WarmTransport(config.workers_dir, worker_count(), FanOut(fan_out_settings(config)))


def open_crew(config: Config, log: Log) -> WarmCrew:
    """The daemon's fan-out workers, none of them started."""
    from ctrl_exec.services.warm_crew import WarmCrew

    return WarmCrew(config.workers_dir, log)


def warm_settings(config: Config) -> WarmSettings | None:
    """How fan-out workers keep connections to agents; None if they keep none."""
    if not config.agent_keepalive:
        return None
    from ctrl_exec.services.warm import worker_count
    from ctrl_exec.services.warm_worker import WarmSettings

    try:
        agents = len(os.listdir(config.agents_dir))
    except OSError:
        agents = 0  # none is paired yet
    return WarmSettings(
        fan_out_settings(config), float(config.agent_keepalive), config.revoked_path, worker_count(), agents
    )


def _owners(config: Config) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Who gets what root writes to the registry: records are root's, contacts the service user's."""
    if os.geteuid() != 0 or not config.service_user:
        return None, None
    from ctrl_exec.common.process import account_of

    uid, gid = account_of(config.service_user, config.service_group)
    return (0, gid), (uid, gid)


class IdentitySerial:
    """The serial of the certificate in a PEM file, read again only when the file has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self._serial = ""

    def __call__(self) -> str:
        """The serial now; empty if there is none."""
        try:
            about = os.stat(self._path)
        except OSError:
            return ""
        mark = (about.st_ino, about.st_mtime_ns, about.st_size)
        if mark != self._mark:
            self._mark, self._serial = mark, identity_serial(self._path)
        return self._serial


def identity_serial(path: str) -> str:
    """The serial of the certificate in a PEM file in lower-case hex; empty if there is none."""
    from ctrl_exec.common.certificate import parse_certificate, pem_to_der
    from ctrl_exec.common.errors import CtrlExecError
    from ctrl_exec.common.files import read_bounded

    try:
        pem = read_bounded(path, _CERTIFICATE_LIMIT_BYTES, follow=True)
        return parse_certificate(pem_to_der(pem.decode("ascii"))).serial
    except (OSError, CtrlExecError, UnicodeDecodeError):
        return ""


def _home() -> str:
    """The home directory of the user we run as, from the user database."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"
