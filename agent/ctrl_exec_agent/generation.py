"""One generation of the agent: everything that a start or a reload reads, checked as a whole.

Owns what makes an agent unfit to serve, and what is worth a warning. Opens no socket.
"""

from __future__ import annotations

import os
import stat

from ctrl_exec.common.certificate import parse_certificate, pem_to_der
from ctrl_exec.common.clock import openssl_time
from ctrl_exec.common.errors import CertificateError, ConfigError, InvalidNameError, StorageError
from ctrl_exec.common.files import make_dirs, read_bounded
from ctrl_exec.common.hook import HookSettings, hook_environment
from ctrl_exec.common.log import Log
from ctrl_exec.common.names import check_agent_name
from ctrl_exec.common.settings import line_of, read_document
from ctrl_exec.common.value import field, value
from ctrl_exec_agent.allowlist import load_allowlist
from ctrl_exec_agent.config import load_agent_config
from ctrl_exec_agent.runner import script_environment
from ctrl_exec_agent.spool import Spool
from ctrl_exec_agent.trust import trust_warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec_agent.allowlist import Allowlist
    from ctrl_exec_agent.config import AgentConfig

PROGRAM = "ctrl-exec-agent"
_CERTIFICATE_BYTES = 64 * 1024


@value
class Source:
    """Where a generation is read from: two paths (None: the usual ones) and the program's environment."""

    config_path: str | None = None
    allowlist_path: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@value
class Parts:
    """What one generation serves with; `expiry` is our certificate's end, as openssl writes it.

    `environment` is what scripts get, `hook` the auth hook's settings if there is one.
    """

    config: AgentConfig
    name: str
    allowlist: Allowlist
    log: Log
    spool: Spool
    environment: Mapping[str, str]
    hook: HookSettings | None
    expiry: str


def load_parts(source: Source) -> Parts:
    """The generation of this moment.

    Raises: ConfigError if anything is wrong that an admin must set right; also if it is not paired.
    """
    config = load_agent_config(source.config_path, allowlist=source.allowlist_path)
    allowlist = load_allowlist(config.scripts_path, config.script_dirs)
    check_profiles(config, allowlist)
    check_paired(config)
    try:
        make_dirs(config.runs_dir)
    except StorageError as error:
        raise ConfigError(f"the spool can't be made: {error}") from error
    return Parts(
        config=config,
        name=_name(config),
        allowlist=allowlist,
        log=Log(PROGRAM, config.log_target, config.log_format),
        spool=Spool(config.runs_dir),
        environment=script_environment(source.environment),
        hook=hook_settings(config, source.environment),
        expiry=_expiry(config.cert_path),
    )


def hook_settings(config: AgentConfig, environment: Mapping[str, str]) -> HookSettings | None:
    """How the auth hook is run, None without one."""
    if config.auth_hook is None:
        return None
    built = hook_environment((), "", environment, environment.get("HOME", "/"))
    return HookSettings(config.auth_hook, config.auth_hook_timeout, built)


def check_profiles(config: AgentConfig, allowlist: Allowlist) -> None:
    """Refuse what would run a script as somebody else than its profile says. Raises: ConfigError."""
    if config.executor_socket is not None:
        line = line_of(read_document(config.path), "executor_socket")
        raise ConfigError("executor_socket: this version has no executor", path=config.path, line=line)
    defined = {profile.name for profile in config.profiles}
    for script in allowlist.scripts.values():
        if script.profile:
            missing = "needs executor_socket" if script.profile in defined else "is not defined"
            wrong = f"{script.name}: profile {script.profile} {missing}"
            raise ConfigError(wrong, path=config.scripts_path)


def check_paired(config: AgentConfig) -> None:
    """Refuse to go on without certificate, key and CA. Raises: ConfigError saying how to pair."""
    for path in (config.cert_path, config.key_path, config.ca_path):
        if not os.path.exists(path):
            raise ConfigError(
                f"this agent is not paired ({path} does not exist); "
                f"pair it with: {PROGRAM} request-pairing --dispatcher HOST"
            )


def is_paired(config: AgentConfig) -> bool:
    """Whether certificate, key and CA are there."""
    try:
        check_paired(config)
    except ConfigError:
        return False
    return True


def warnings(config: AgentConfig, allowlist: Allowlist) -> tuple[str, ...]:
    """What an admin should look at although the agent can serve."""
    found = allowlist.warnings() + trust_warnings(config.trust_path, config.revoked_path)
    if config.auth_hook is not None and not os.access(config.auth_hook, os.X_OK):
        found += (f"auth_hook {config.auth_hook} can't be executed: every request will be denied",)
    if is_paired(config) and os.stat(config.key_path).st_mode & (stat.S_IROTH | stat.S_IWOTH):
        found += (f"{config.key_path} can be read by everyone; it should have mode 0640",)
    return found


def _name(config: AgentConfig) -> str:
    try:
        return check_agent_name(config.agent_name, "hostname")
    except InvalidNameError as error:
        raise ConfigError(f"hostname: {error}; set hostname", path=config.path) from error


def _expiry(path: str) -> str:
    try:
        pem = read_bounded(path, _CERTIFICATE_BYTES, follow=True).decode("ascii", "replace")
        return openssl_time(parse_certificate(pem_to_der(pem)).not_after)
    except (OSError, StorageError, CertificateError) as error:
        raise ConfigError(f"the agent's certificate can't be used: {error}", path=path) from error
