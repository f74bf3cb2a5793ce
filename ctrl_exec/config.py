"""The dispatcher's settings: `ctrl-exec.conf` read into one immutable `Config`.

Owns every key of the file, its default, its range and its one-line meaning; the example file and
the reference in docs/ are rendered from here. Derives the paths of core §3 from the two roots.
Must not know who uses a setting, and opens nothing but the file itself.
"""

from __future__ import annotations

import os

from ctrl_exec.common import settings
from ctrl_exec.common.errors import ConfigError
from ctrl_exec.common.names import ACCOUNT, DISPATCHER_ID
from ctrl_exec.common.settings import (
    ADDRESSES,
    FLAG,
    NETWORKS,
    PATH,
    Document,
    Kind,
    choice,
    integer,
    matching,
    seconds,
    size,
    spelled,
)
from ctrl_exec.common.value import field, replace, value
from ctrl_exec.locations import DEFAULT_ETC_DIR, DEFAULT_STATE_DIR, Locations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Network, IPv6Network
    from typing import Literal

DEFAULT_PATH = "/etc/ctrl-exec/ctrl-exec.conf"
DEFAULT_SOCKET = "/run/ctrl-exec/api.sock"
DEFAULT_LOCAL_SOCKET = "/run/ctrl-exec-local/local.sock"
SERVICE_USER = "ctrl-exec"
LOCAL_USER = "ctrl-exec-local"
# Pairing: agents come from other hosts, and the port is open only while a person waits; the API: with TLS.
ANY_ADDRESS = "0.0.0.0"  # noqa: S104
YEAR_S = 366 * 86400
# sun_path of unix(7) is 108 bytes with its final NUL
SOCKET_PATH_LIMIT_BYTES = 107

USER = spelled(ACCOUNT, "a user or group name, or nothing", may_be_empty=True)
CRON = matching(
    r"(\S+\s+\S+\s+\S+\s+\S+\s+\S+)?", "five cron fields such as 17 * * * *, or nothing for never"
)
HOST_ID = spelled(DISPATCHER_ID, "letters, digits, '.', '_' and '-'")
PORT = integer(0, 65535)
SOCKET_PATH = Kind("an absolute path, or nothing for none", lambda text: PATH.read(text) if text else "")


def _matching_list(pattern: str, expected: str) -> Kind:
    one = matching(pattern, expected)

    def read(text: str) -> tuple[str, ...]:
        return tuple(one.read(part.strip()) for part in text.split(",") if part.strip())

    return Kind(expected, read, ", ".join)


def _read_rate(text: str) -> tuple[int, int, int]:
    count, window_s, block_s = (int(part) for part in text.split("/") if part.isascii() and part.isdigit())
    if not (1 <= count <= 1_000_000 and 1 <= window_s <= 86400 and block_s <= 30 * 86400):
        raise ValueError(text)
    return count, window_s, block_s


# No variable that changes how a program is loaded (safety §1.12), none of the hook's own.
ENVIRONMENT_NAMES = _matching_list(
    r"(?!LD_|PYTHON|PERL|BASH_ENV|ENV$|IFS$|ENVEXEC_)[A-Za-z_][A-Za-z0-9_]{0,127}",
    "names of environment variables separated by commas, none that changes how programs are loaded",
)
OUTGOING = _matching_list(
    r"[0-9a-fA-F.:]+(/[0-9]{1,3})?|(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}",
    "networks such as 10.0.0.0/8, or host:port, separated by commas",
)
ORIGINS = _matching_list(
    r"https?://[a-z0-9.\[\]:_-]+", "origins such as https://ops.example.net separated by commas"
)
HOST_NAMES = _matching_list(r"[A-Za-z0-9\[\]:._-]{1,260}", "host names separated by commas")
RATE = Kind(
    "count/window/block, the last two in seconds, such as 60/60/60",
    _read_rate,
    lambda rate: "/".join(str(part) for part in rate),
)


@value
class Config(Locations):
    """Every setting of the dispatcher, and the paths that follow from them."""

    etc_dir: str = field(default=DEFAULT_ETC_DIR, kind=PATH, doc="Configuration, keys and certificates.")
    state_dir: str = field(
        default=DEFAULT_STATE_DIR, kind=PATH, doc="Registry, run records, locks and queues."
    )
    cert: str = field(
        default="", kind=PATH, doc="The dispatcher's certificate; unset: <etc_dir>/dispatcher.crt."
    )
    key: str = field(default="", kind=PATH, doc="The dispatcher's key; unset: <etc_dir>/dispatcher.key.")
    ca: str = field(default="", kind=PATH, doc="The certificate of the CA; unset: <ca_dir>/ca.crt.")
    ca_dir: str = field(default="", kind=PATH, doc="Where ca.key and ca.crt are kept; unset: etc_dir.")
    service_user: str = field(
        default=SERVICE_USER,
        kind=USER,
        doc="Who owns the state; commands run as root become this user. Unset where etc_dir is moved: none.",
    )
    service_group: str = field(
        default="", kind=USER, doc="The group of the state; unset: the group of service_user."
    )
    dispatcher_id: str = field(
        default="", kind=HOST_ID, doc="The name agents know this dispatcher by; unset: the name of this host."
    )

    auth_hook: str = field(
        default="", kind=PATH, doc="The program that authorises each request; unset: none."
    )
    auth_hook_timeout: int = field(
        default=10, kind=seconds(1, 3600), doc="How long the hook may take before the answer is no."
    )
    auth_hook_env: tuple[str, ...] = field(
        default=(),
        kind=ENVIRONMENT_NAMES,
        doc="Variables of the daemon's environment that the hook gets too.",
    )
    auth_hook_env_file: str = field(
        default="", kind=PATH, doc="A root-owned file of NAME=value lines with the values of auth_hook_env."
    )
    auth_hook_large: Literal["refuse", "stdin"] = field(
        default="refuse",
        kind=choice("refuse", "stdin"),
        doc="A value too large for the hook's environment refuses the request, or is given on stdin only.",
    )
    auth_deny_generic: bool = field(default=False, kind=FLAG, doc="Tell a denied caller only `forbidden`.")
    forward_token: Literal["body", "never"] = field(
        default="body",
        kind=choice("body", "never"),
        doc="Whether agents get the token of a request's body (or of the CLI); never one of a header.",
    )

    read_timeout: int = field(
        default=60, kind=seconds(1, 86400), doc="How long to wait for a silent agent (old name: timeout)."
    )
    connect_timeout: int = field(
        default=10,
        kind=seconds(1, 600),
        doc="How long connecting and the TLS handshake with an agent may take.",
    )
    discovery_timeout: int = field(
        default=5, kind=seconds(1, 600), doc="How long a discovery may take in all."
    )
    run_deadline: int = field(
        default=86400,
        kind=seconds(10, YEAR_S),
        doc="When a run that no agent answers for is given up as lost.",
    )
    agent_keepalive: int = field(
        default=300, kind=seconds(0, 3600), doc="How long an idle connection to an agent is kept; 0: never."
    )
    max_parallel: int = field(
        default=256, kind=integer(1, 65535), doc="TLS handshakes with agents in flight."
    )
    max_hosts: int = field(
        default=10_000, kind=integer(1, 1_000_000), doc="The most hosts one request may name."
    )
    max_run_output: int = field(
        default=256 << 20,
        kind=size(65536, 1 << 40),
        doc="The most output kept of one run, over all its hosts.",
    )
    run_retention: int = field(
        default=86400, kind=seconds(60, 10 * YEAR_S), doc="How long the record of a finished run is kept."
    )

    api_port: int = field(default=7445, kind=PORT, doc="The port of the HTTP API; 0: any free one.")
    api_bind: tuple[str, ...] = field(
        default=("127.0.0.1",),
        kind=ADDRESSES,
        doc="Addresses the API listens on; unset: 127.0.0.1, and 0.0.0.0 once api_cert is set.",
    )
    api_socket: str = field(
        default=DEFAULT_SOCKET,
        kind=SOCKET_PATH,
        doc="The API on a Unix socket; unset for a private instance: none.",
    )
    api_socket_group: str = field(
        default="", kind=USER, doc="The group that may use the socket; unset: service_group."
    )
    api_cert: str = field(
        default="", kind=PATH, doc="The API's certificate; set with api_key it turns TLS on."
    )
    api_key: str = field(default="", kind=PATH, doc="The API's key.")
    api_client_ca: str = field(
        default="",
        kind=PATH,
        doc="Clients of the API must show a certificate of this CA; unset: none asked for.",
    )
    api_auth_default: Literal["deny", "allow", "token"] = field(
        default="deny",
        kind=choice("deny", "allow", "token"),
        doc="What the API does where no auth_hook is set.",
    )
    api_origins: tuple[str, ...] = field(
        default=(), kind=ORIGINS, doc="Origins whose web pages may call the API, besides its own."
    )
    api_names: tuple[str, ...] = field(
        default=(), kind=HOST_NAMES, doc="Host names the API answers to when api_auth_default = allow."
    )
    api_trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = field(
        default=(), kind=NETWORKS, doc="Proxies whose X-Forwarded-For gives the caller's address."
    )
    api_max_children: int = field(default=64, kind=integer(2, 65535), doc="Requests served at once.")
    api_max_long: int = field(
        default=48,
        kind=integer(1, 65535),
        doc="Of these, how many may be long runs, streams and waits; unset: three quarters.",
    )
    api_max_per_ip: int = field(default=32, kind=integer(1, 65535), doc="Of these, how many for one address.")
    api_keepalive_requests: int = field(
        default=1, kind=integer(1, 1_000_000), doc="Requests on one connection."
    )
    api_keepalive_idle: int = field(
        default=5, kind=seconds(1, 3600), doc="How long a kept connection may be silent between requests."
    )
    api_drain: int = field(
        default=30, kind=seconds(0, 3600), doc="How long a stopping API waits for the requests it serves."
    )

    cert_days: int = field(
        default=365, kind=integer(1, 3650), doc="How long an agent's certificate is valid."
    )
    cert_renewal_days: int = field(
        default=90,
        kind=integer(1, 3650),
        doc="Days left at which the dispatcher's own certificate is replaced.",
    )
    cert_overlap_days: int = field(
        default=30,
        kind=integer(0, 800),
        doc="How long the dispatcher's old certificate works beside a new one.",
    )
    pairing_bind: tuple[str, ...] = field(
        default=(ANY_ADDRESS,), kind=ADDRESSES, doc="Addresses pairing mode listens on."
    )
    pairing_port: int = field(default=7444, kind=PORT, doc="The port of pairing mode; 0: any free one.")
    pairing_max_queue: int = field(default=10, kind=integer(1, 10_000), doc="Pairing requests that may wait.")
    pairing_timeout: int = field(
        default=600, kind=seconds(10, 86400), doc="How long a pairing request waits for a decision."
    )
    pairing_rate_limit: tuple[int, int, int] = field(
        default=(60, 60, 60),
        kind=RATE,
        doc="Pairing connections of one address: how many, in what time, blocked how long.",
    )
    pairing_api_approve: bool = field(
        default=False, kind=FLAG, doc="Whether the API shows the registry and takes pairing decisions."
    )

    purge_cron: str = field(default="17 * * * *", kind=CRON, doc="When finished records are purged.")
    maintain_cron: str = field(default="37 3 * * *", kind=CRON, doc="When certificates are looked after.")
    oauth_password_grant: bool = field(
        default=True, kind=FLAG, doc="Whether the task layer gives tokens for a name and a password."
    )
    local_user: str = field(
        default="",
        kind=USER,
        doc="Who local commands run as; unset: ctrl-exec-local, without a local_socket service_user.",
    )
    local_socket: str = field(
        default=DEFAULT_LOCAL_SOCKET,
        kind=SOCKET_PATH,
        doc="Where ctrl-exec-local listens; unset for a private instance: none, the scheduler runs commands.",
    )
    tasks_max_running: int = field(
        default=32, kind=integer(1, 10_000), doc="Executions of tasks under way at once, over all projects."
    )
    tasks_max_log: int = field(
        default=50 << 20,
        kind=size(1 << 16, 1 << 40),
        doc="What the log of one execution holds: beyond it head and tail are kept.",
    )
    tasks_timeout: int = field(
        default=0,
        kind=seconds(0, 30 * 86400),
        doc="How long an execution may take where neither its task nor its project says; 0: without end.",
    )
    tasks_retention: int = field(
        default=30 * 86400,
        kind=seconds(0, 10 * YEAR_S),
        doc="How long finished executions are kept where neither task nor project says, in whole days.",
    )
    tasks_audit_retention: int = field(
        default=400 * 86400,
        kind=seconds(90 * 86400, 10 * YEAR_S),
        doc="How long entries of the audit log are kept.",
    )
    tasks_outgoing_allow: tuple[str, ...] = field(
        default=(),
        kind=OUTGOING,
        doc="Inner networks, or host:port, that HTTP tasks and notifiers may reach beside public ones.",
    )
    tasks_smtp_host: str = field(
        default="",
        kind=matching(r"[A-Za-z0-9._:-]*", "a host name or an address, or nothing for no mail"),
        doc="The mail server that notifiers of kind EMAIL use; unset: none.",
    )
    tasks_smtp_port: int = field(default=587, kind=integer(1, 65535), doc="The port of the mail server.")
    tasks_smtp_security: Literal["starttls", "tls", "none"] = field(
        default="starttls", kind=choice("starttls", "tls", "none"), doc="How mail is kept from others' eyes."
    )
    tasks_smtp_from: str = field(
        default="",
        kind=matching(r"([^\s@,;<>\"()]+@[A-Za-z0-9.-]+)?", "an address such as ctrl-exec@example.net"),
        doc="The sender of mail.",
    )
    tasks_smtp_user: str = field(
        default="",
        kind=matching(r"(\S{1,320})?", "a name without blanks, or nothing"),
        doc="Who signs in at the mail server; unset: nobody.",
    )
    tasks_smtp_password_file: str = field(
        default="", kind=PATH, doc="A file, readable for service_user, whose first line is the password."
    )
    log_target: Literal["syslog", "stderr", "journal"] = field(
        default="syslog", kind=choice("syslog", "stderr", "journal"), doc="Where log lines go."
    )
    log_format: Literal["text", "json"] = field(
        default="text", kind=choice("text", "json"), doc="How log lines look."
    )


def load_config(path: str | None = None) -> Config:
    """Read `ctrl-exec.conf`, or the file given.

    Raises:
        ConfigError: it is missing, has an unknown key, a bad value or a contradiction.
    """
    return build_config(settings.read_document(path or DEFAULT_PATH))


def parse_config(text: str, path: str = "ctrl-exec.conf") -> Config:
    """Read settings from a text; `path` is the name that errors show.

    Raises:
        ConfigError: as for `load_config`.
    """
    return build_config(settings.parse(text, path))


def build_config(document: Document) -> Config:
    """Give the settings of a parsed file, with the defaults that depend on other settings.

    Raises:
        ConfigError: an unknown section or key, a bad value, a contradiction.
    """
    if document.sections:
        section = document.sections[0]
        raise ConfigError(f"unknown section [{section.name}]", path=document.path, line=section.line)
    document = _with_new_names(document)
    config = settings.build(Config, document)
    config = replace(config, **_dependent_defaults(config, {entry.key for entry in document.entries}))
    for keys, is_wrong, words in CONTRADICTIONS:
        if is_wrong(config):
            line = max(settings.line_of(document, key) for key in keys)
            raise ConfigError(words, path=document.path, line=line)
    return config


def _with_new_names(document: Document) -> Document:
    keys = [entry.key for entry in document.entries]
    if "timeout" in keys and "read_timeout" in keys:
        line = settings.line_of(document, "timeout")
        raise ConfigError(
            "timeout is the old name of read_timeout; set one of them", path=document.path, line=line
        )
    renamed = (
        replace(each, key="read_timeout") if each.key == "timeout" else each for each in document.entries
    )
    return replace(document, entries=tuple(renamed))


def _dependent_defaults(config: Config, given: set[str]) -> dict[str, object]:
    ca_dir = config.ca_dir or config.etc_dir
    found: dict[str, object] = {
        "ca_dir": ca_dir,
        "ca": config.ca_cert_path,
        "cert": config.cert_path,
        "key": config.key_path,
        "dispatcher_id": config.dispatcher_id or os.uname().nodename.lower(),
    }
    if config.is_private and "service_user" not in given:
        found["service_user"] = ""
    if config.is_private and "api_socket" not in given:
        found["api_socket"] = ""
    if config.is_private and "local_socket" not in given:
        found["local_socket"] = ""
    user = found.get("service_user", config.service_user)
    # empty: the user's own group, which only the system that runs the service knows
    found["service_group"] = config.service_group or (SERVICE_USER if user == SERVICE_USER else "")
    found["api_socket_group"] = config.api_socket_group or found["service_group"]
    has_local_service = found.get("local_socket", config.local_socket)
    found["local_user"] = config.local_user or (LOCAL_USER if has_local_service else user)
    if config.api_cert and "api_bind" not in given:
        found["api_bind"] = (ANY_ADDRESS,)
    if "api_max_long" not in given:
        found["api_max_long"] = max(1, config.api_max_children * 3 // 4)
    return found


# Settings that cannot all be meant: the keys, when they clash, what was expected.
CONTRADICTIONS: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
    (
        ("api_cert", "api_key"),
        lambda config: bool(config.api_cert) != bool(config.api_key),
        "api_cert and api_key belong together: set both (TLS) or neither (plain HTTP)",
    ),
    (
        ("api_client_ca",),
        lambda config: bool(config.api_client_ca) and not config.api_cert,
        "api_client_ca needs TLS: set api_cert and api_key too",
    ),
    (
        ("tasks_smtp_host", "tasks_smtp_from"),
        lambda config: bool(config.tasks_smtp_host) and not config.tasks_smtp_from,
        "tasks.smtp_host needs tasks.smtp_from, the sender of mail",
    ),
    (
        ("tasks_smtp_user", "tasks_smtp_password_file"),
        lambda config: bool(config.tasks_smtp_user) != bool(config.tasks_smtp_password_file),
        "tasks.smtp_user and tasks.smtp_password_file belong together: set both or neither",
    ),
    (
        ("api_max_long", "api_max_children"),
        lambda config: config.api_max_long > config.api_max_children,
        "api_max_long must not exceed api_max_children",
    ),
    (
        ("cert_renewal_days",),
        lambda config: config.cert_renewal_days >= 825,
        "cert_renewal_days must be less than the 825 days of a dispatcher's certificate",
    ),
    (
        ("service_group",),
        lambda config: bool(config.service_group) and not config.service_user,
        "service_group needs service_user",
    ),
    (
        ("api_port", "pairing_port"),
        lambda config: (
            config.api_port == config.pairing_port != 0
            and (
                ANY_ADDRESS in config.api_bind + config.pairing_bind
                or bool({*config.api_bind} & {*config.pairing_bind})
            )
        ),
        "api_port and pairing_port must differ on the same address",
    ),
    (
        ("auth_hook_env_file",),
        lambda config: bool(config.auth_hook_env_file) and not config.auth_hook_env,
        "auth_hook_env_file gives values to the names in auth_hook_env: set that too",
    ),
    (
        ("api_socket",),
        lambda config: len(os.fsencode(config.api_socket)) > SOCKET_PATH_LIMIT_BYTES,
        f"api_socket is too long: the kernel allows {SOCKET_PATH_LIMIT_BYTES} bytes",
    ),
    (
        ("local_socket",),
        lambda config: len(os.fsencode(config.local_socket)) > SOCKET_PATH_LIMIT_BYTES,
        f"local_socket is too long: the kernel allows {SOCKET_PATH_LIMIT_BYTES} bytes",
    ),
    (
        ("run_deadline", "read_timeout"),
        lambda config: config.run_deadline < config.read_timeout,
        "run_deadline must not be less than read_timeout",
    ),
)

EXAMPLE_HEADER = """\
ctrl-exec.conf: the settings of the dispatcher.

A line is `key = value`; a line that begins with # is a comment. Every key is
shown with its default. `ctrl-exec check-config` checks the file."""


def render_example() -> str:
    """Give the text of etc/ctrl-exec.conf.example."""
    return settings.render_example(Config, EXAMPLE_HEADER)
