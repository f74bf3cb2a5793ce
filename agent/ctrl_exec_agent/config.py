"""The agent's settings: `agent.conf` becomes one frozen `AgentConfig`.

Owns the names, defaults and meanings of all agent keys. Opens nothing but the file it is given and
knows no socket, script or certificate.
"""

from __future__ import annotations

import re

from ctrl_exec.common import settings
from ctrl_exec.common.errors import ConfigError
from ctrl_exec.common.value import field, fields, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from ctrl_exec.common.settings import Document, Section

DEFAULT_PATH = "/etc/ctrl-exec-agent/agent.conf"
_TAG_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_TAG_LIMIT = 256
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"


@value
class RateLimit:
    """`count` connections within `window_s` block an address for `block_s`."""

    count: int
    window_s: int
    block_s: int


def _read_rate(text: str) -> RateLimit:
    found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})/([0-9]{1,7})", text, re.ASCII)
    if not found or "0" in (found[1].lstrip("0") or "0", found[2].lstrip("0") or "0"):
        raise ValueError(text)
    return RateLimit(int(found[1]), int(found[2]), int(found[3]))


def _show_rate(limit: RateLimit) -> str:
    return f"{limit.count}/{limit.window_s}/{limit.block_s}"


RATE = settings.Kind("connections/seconds/seconds blocked, such as 10/60/300", _read_rate, _show_rate)


@value
class Profile:
    """Whom a script runs as, and with what rights; read and checked, served by the executor only."""

    name: str
    run_as: str = field(default="", kind=settings.TEXT, doc="The user the script runs as.")
    caps: tuple[str, ...] = field(default=(), kind=settings.TEXTS, doc="Capabilities the script keeps.")
    writable: tuple[str, ...] = field(default=(), kind=settings.PATHS, doc="Paths the script may write.")
    no_new_privileges: bool = field(
        default=True, kind=settings.FLAG, doc="Whether set-uid programs gain nothing in the script."
    )


@value
class AgentConfig:
    """All keys of `agent.conf`; unset paths follow `etc_dir` and `state_dir`."""

    hostname: str | None = field(
        default=None,
        kind=settings.matching(_NAME, "a host name of letters, digits, '.', '_' and '-'"),
        doc="The agent's name, as the dispatcher's registry knows it; default: the machine's full name.",
    )
    etc_dir: str = field(
        default="/etc/ctrl-exec-agent",
        kind=settings.PATH,
        doc="Where scripts.conf, certificates, key and revoked-serials are.",
    )
    state_dir: str = field(
        default="/var/lib/ctrl-exec-agent",
        kind=settings.PATH,
        doc="Where the agent keeps the trust map, its spool of runs and its locks.",
    )
    bind: tuple[str, ...] = field(
        default=("0.0.0.0",),  # noqa: S104 - the agent's purpose is to be reached; TLS and trust guard it
        kind=settings.ADDRESSES,
        doc="Addresses to listen on.",
    )
    port: int = field(
        default=7443, kind=settings.integer(0, 65535), doc="The TCP port; 0 takes any free one and logs it."
    )
    cert: str | None = field(
        default=None, kind=settings.PATH, doc="The agent's certificate; default: <etc_dir>/agent.crt."
    )
    key: str | None = field(
        default=None, kind=settings.PATH, doc="The agent's private key; default: <etc_dir>/agent.key."
    )
    ca: str | None = field(
        default=None,
        kind=settings.PATH,
        doc="The CA that dispatchers must chain to; default: <etc_dir>/ca.crt.",
    )
    trusted_dispatchers_path: str | None = field(
        default=None,
        kind=settings.PATH,
        doc="The trust map: '<hex serial> <dispatcher id>' a line; "
        "default: <state_dir>/ctrl-exec-dispatchers.",
    )
    revoked_serials: str | None = field(
        default=None,
        kind=settings.PATH,
        doc="Serials never trusted again, one in hex a line; default: <etc_dir>/revoked-serials.",
    )
    allow_bare_serial: bool = field(
        default=False,
        kind=settings.FLAG,
        doc="Whether a dispatcher may announce a new serial without its certificate (older dispatchers).",
    )
    script_dirs: tuple[str, ...] = field(
        default=(),
        kind=settings.PATHS,
        doc="Directories the real path of a script must lie in when it is run; unset: any absolute path.",
    )
    executor_socket: str | None = field(
        default=None,
        kind=settings.PATH,
        doc="The socket of the executor that runs scripts with a profile; "
        "this version has none and refuses the key.",
    )
    auth_hook: str | None = field(
        default=None, kind=settings.PATH, doc="A program asked before each run, discovery and rotation."
    )
    auth_hook_timeout: int = field(
        default=10, kind=settings.seconds(1, 600), doc="How long the hook may take; then the answer is no."
    )
    stdin_timeout: int = field(
        default=10,
        kind=settings.seconds(1, 86400),
        doc="How long a script may leave its standard input unread before the rest is dropped.",
    )
    allowed_ips: tuple[IPv4Network | IPv6Network, ...] = field(
        default=(),
        kind=settings.NETWORKS,
        doc="Only these addresses or networks may connect; unset: any.",
    )
    rate_limit_volume: RateLimit = field(
        default=RateLimit(10, 60, 300),
        kind=RATE,
        doc="Connections of one address that bring no trusted certificate, of any outcome.",
    )
    rate_limit_probe: RateLimit = field(
        default=RateLimit(3, 600, 3600),
        kind=RATE,
        doc="Connections of one address that fail the TLS handshake or bring an untrusted certificate.",
    )
    rate_limit_disable: bool = field(
        default=False, kind=settings.FLAG, doc="Whether to do without the two rate limits."
    )
    max_children: int = field(
        default=256,
        kind=settings.integer(2, 65536),
        doc="Connections served at once; more are closed at once.",
    )
    keepalive_idle: int = field(
        default=330, kind=settings.seconds(0, 86400), doc="How long a dispatcher's idle connection is kept."
    )
    keepalive_requests: int = field(
        default=0, kind=settings.integer(0, 1_000_000_000), doc="Requests on one connection; 0: any number."
    )
    max_output: int = field(
        default=10 << 20,
        kind=settings.size(1, 1 << 30),
        doc="What is kept of each output stream of a script; the rest is read, counted and dropped.",
    )
    cert_staging_path: str | None = field(
        default=None,
        kind=settings.PATH,
        doc="Where a renewed certificate waits to be promoted; default: <state_dir>/staged.crt.",
    )
    log_target: str = field(
        default="syslog", kind=settings.choice("syslog", "stderr", "journal"), doc="Where log lines go."
    )
    log_format: str = field(
        default="text", kind=settings.choice("text", "json"), doc="How log lines are written."
    )
    tags: tuple[tuple[str, str], ...] = ()
    profiles: tuple[Profile, ...] = ()
    path: str = DEFAULT_PATH
    allowlist: str | None = None

    @property
    def cert_path(self) -> str:
        """The agent's certificate."""
        return self.cert or f"{self.etc_dir}/agent.crt"

    @property
    def key_path(self) -> str:
        """The agent's private key."""
        return self.key or f"{self.etc_dir}/agent.key"

    @property
    def ca_path(self) -> str:
        """The certificate of the CA."""
        return self.ca or f"{self.etc_dir}/ca.crt"

    @property
    def trust_path(self) -> str:
        """The trust map."""
        return self.trusted_dispatchers_path or f"{self.state_dir}/ctrl-exec-dispatchers"

    @property
    def revoked_path(self) -> str:
        """The revoked serials."""
        return self.revoked_serials or f"{self.etc_dir}/revoked-serials"

    @property
    def staging_path(self) -> str:
        """The renewed certificate before its promotion."""
        return self.cert_staging_path or f"{self.state_dir}/staged.crt"

    @property
    def scripts_path(self) -> str:
        """The allowlist."""
        return self.allowlist or f"{self.etc_dir}/scripts.conf"

    @property
    def runs_dir(self) -> str:
        """The spool of runs and the locks."""
        return f"{self.state_dir}/runs"

    @property
    def agent_name(self) -> str:
        """The configured name or the machine's full one, in lower case."""
        return (self.hostname or _full_name()).lower()


def load_agent_config(path: str | None = None, *, allowlist: str | None = None) -> AgentConfig:
    """The settings of the file; `allowlist` replaces `<etc_dir>/scripts.conf`.

    Raises: ConfigError naming file, line, and what was expected.
    """
    path = path or DEFAULT_PATH
    document = settings.read_document(path)
    given = _read_sections(document) | {"path": path, "allowlist": allowlist}
    return settings.build(AgentConfig, document, given=given)


def render_agent_example() -> str:
    """The text of `etc/agent.conf.example`."""
    return settings.render_example(AgentConfig, _HEADER) + _FOOTER


_HEADER = """\
Settings of ctrl-exec-agent; every key with its meaning and default.

Lines are 'key = value'. A comment has its own line. Unknown keys are refused: the agent does not
start (exit 78) and says which line is wrong; 'ctrl-exec-agent self-check' says it without starting.
After a change: systemctl reload ctrl-exec-agent (bind and port need a restart)."""

_FOOTER = """
# Tags are reported to the dispatcher by discovery.
#[tags]
#env = production
#role = web

# Profiles say whom a script runs as. They need executor_socket; an entry of scripts.conf names one.
#[profile deploy]
#run_as = deploy
#caps = cap_net_bind_service
#writable = /srv/www:/var/cache/deploy
#no_new_privileges = yes
"""


def _read_sections(document: Document) -> dict[str, tuple[tuple[str, str], ...] | tuple[Profile, ...]]:
    tags: tuple[tuple[str, str], ...] = ()
    profiles: dict[str, Profile] = {}
    seen = False
    for section in document.sections:
        if section.name == "tags" and not section.title and not seen:
            tags, seen = _read_tags(section, document.path), True
        elif section.name == "profile" and section.title and section.title not in profiles:
            profiles[section.title] = _read_profile(section, document.path)
        else:
            title = f"{section.name} {section.title}".strip()
            expected = "expected one [tags] and sections [profile NAME] of different names"
            raise ConfigError(f"section [{title}]: {expected}", path=document.path, line=section.line)
    return {"tags": tags, "profiles": tuple(profiles.values())}


def _read_tags(section: Section, path: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for entry in section.entries:
        if not _TAG_KEY.fullmatch(entry.key) or len(entry.text) > _TAG_LIMIT:
            expected = "letters, digits, '.', '_' and '-', at most 64, and a value of at most 256 characters"
            raise ConfigError(f"tag {entry.key!r}: expected {expected}", path=path, line=entry.line)
        if entry.key in found:
            raise ConfigError(f"tag {entry.key} is set twice", path=path, line=entry.line)
        found[entry.key] = entry.text
    return tuple(found.items())


def _read_profile(section: Section, path: str) -> Profile:
    known = {each.name: each for each in fields(Profile) if each.kind is not None}
    return Profile(name=section.title, **settings.read_entries(section.entries, known, path))


def _full_name() -> str:
    import os
    import socket

    name = os.uname().nodename
    return name if "." in name else socket.getfqdn(name)
