"""The auth hook: one program that says yes with exit code 0 and no with anything else.

Owns what the hook is told (JSON on stdin and ENVEXEC_* variables) and how its end is read. Deny is
the default of every way it can go wrong. Used by the dispatcher and by the agent; must not know what
an action means or what becomes of the answer.
"""

from __future__ import annotations

import os

from ctrl_exec.common.clock import monotonic
from ctrl_exec.common.errors import ConfigError, InvalidInputError, PayloadError, ProgramError, StorageError
from ctrl_exec.common.files import is_writable_by_others, read_bounded
from ctrl_exec.common.json_text import dumps
from ctrl_exec.common.program import run_program
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# MAX_ARG_STRLEN of execve(2): 32 pages for "NAME=value" and its final NUL
VARIABLE_LIMIT_BYTES = 131_071
ENV_FILE_LIMIT_BYTES = 64 << 10
ALLOWED, DENIED, BAD_CREDENTIALS, INSUFFICIENT_PRIVILEGE = 0, 1, 2, 3
REASONS = {
    DENIED: "denied",
    BAD_CREDENTIALS: "bad credentials",
    INSUFFICIENT_PRIVILEGE: "insufficient privilege",
}
_LOADER_PREFIXES = ("LD_", "PYTHON", "PERL", "ENVEXEC_")


@value
class HookSettings:
    """How the hook is run.

    `environment` is all it gets beside ENVEXEC_*: PATH, LANG, TZ, HOME and what the configuration
    lets through. `passes_large_on_stdin` leaves a variable out that the kernel would not take.
    """

    path: str
    timeout_s: float = 10.0
    environment: tuple[tuple[str, str], ...] = (("PATH", DEFAULT_PATH),)
    passes_large_on_stdin: bool = False


@value
class HookQuestion:
    """What the hook decides on.

    `hosts` are resolved names, `timestamp` is UTC with Z, `submitter` and its address belong to the
    run that is asked about, `via` is the way in (http, socket, cli, scheduler, webhook, ui, agent)
    and `auth` how far the user name is proven (none, claimed, peer, token).
    """

    action: str
    timestamp: str
    script: str = ""
    hosts: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    username: str = ""
    token: str = ""
    source_ip: str = ""
    dispatcher: str = ""
    dispatcher_serial: str = ""
    reqid: str = ""
    submitter: str = ""
    submitter_ip: str = ""
    via: str = ""
    auth: str = "none"


@value
class HookVerdict:
    """`code` 0 allows; 1 denied, 2 bad credentials, 3 insufficient privilege.

    `cause` says for the log how it came about: `exit 0`, `exit 7`, `signal 9`, `timeout`, or why it
    could not be started.
    """

    code: int
    cause: str
    elapsed_s: float

    @property
    def is_allowed(self) -> bool:
        """Whether the hook said yes."""
        return self.code == ALLOWED

    @property
    def has_timed_out(self) -> bool:
        """Whether the hook was killed for taking too long."""
        return self.cause == "timeout"

    @property
    def reason(self) -> str:
        """The word for the caller; empty when allowed."""
        return REASONS.get(self.code, "")


def ask_hook(settings: HookSettings, question: HookQuestion) -> HookVerdict:
    """Run the hook to its end and read its exit code.

    Its output goes nowhere, it need not read stdin, and its process group is killed when the time
    is over. Raises: PayloadError naming the variable that is too large for the kernel;
    InvalidInputError for text that can't be passed to a program.
    """
    environment = dict(settings.environment) | _variables(settings, question)
    document = _document(question)
    started = monotonic()
    try:
        ended = run_program(
            [settings.path],
            environment=environment,
            timeout_s=settings.timeout_s,
            stdin=document,
            limit_bytes=0,
        )
    except (ProgramError, OSError) as error:
        return HookVerdict(DENIED, str(error), monotonic() - started)
    elapsed_s = monotonic() - started
    if ended.timed_out:
        return HookVerdict(DENIED, "timeout", elapsed_s)
    if ended.signal or ended.exit_code < 0:
        return HookVerdict(DENIED, f"signal {ended.signal}", elapsed_s)
    code = ended.exit_code if ended.exit_code in (ALLOWED, *REASONS) else DENIED
    return HookVerdict(code, f"exit {ended.exit_code}", elapsed_s)


def _document(question: HookQuestion) -> bytes:
    """The question as one JSON line: UTF-8 cannot hold everything JSON can, so it stays ASCII."""
    asked = {
        "action": question.action,
        "script": question.script,
        "hosts": list(question.hosts),
        "args": list(question.args),
        "username": question.username,
        "token": question.token,
        "source_ip": question.source_ip,
        "timestamp": question.timestamp,
        "dispatcher": question.dispatcher,
        "dispatcher_serial": question.dispatcher_serial,
        "reqid": question.reqid,
        "submitter": question.submitter,
        "submitter_ip": question.submitter_ip,
        "via": question.via,
        "auth": question.auth,
    }
    return dumps(asked).encode() + b"\n"


def _variables(settings: HookSettings, question: HookQuestion) -> dict[str, str]:
    """All ENVEXEC_* variables, always all of them, save those too large where stdin holds them."""
    wanted = {
        "ENVEXEC_ACTION": question.action,
        "ENVEXEC_SCRIPT": question.script,
        "ENVEXEC_HOSTS": ",".join(question.hosts),
        "ENVEXEC_ARGS": " ".join(question.args),
        "ENVEXEC_ARGS_JSON": dumps(list(question.args)),
        "ENVEXEC_USERNAME": question.username,
        "ENVEXEC_TOKEN": question.token,
        "ENVEXEC_SOURCE_IP": question.source_ip,
        "ENVEXEC_TIMESTAMP": question.timestamp,
        "ENVEXEC_DISPATCHER": question.dispatcher,
        "ENVEXEC_DISPATCHER_SERIAL": question.dispatcher_serial,
        "ENVEXEC_REQID": question.reqid,
        "ENVEXEC_SUBMITTER": question.submitter,
        "ENVEXEC_SUBMITTER_IP": question.submitter_ip,
        "ENVEXEC_VIA": question.via,
        "ENVEXEC_AUTH": question.auth,
        "ENVEXEC_OMITTED": "",
    }
    large = [name for name, content in wanted.items() if _size(name, content) > VARIABLE_LIMIT_BYTES]
    if large and not settings.passes_large_on_stdin:
        raise PayloadError(
            f"{large[0]} would exceed the {VARIABLE_LIMIT_BYTES} bytes that the auth hook's environment can "
            "hold; auth_hook_large = stdin passes it on stdin only",
            field=large[0],
        )
    for name in large:
        del wanted[name]
    wanted["ENVEXEC_OMITTED"] = ",".join(large)
    return wanted


def _size(name: str, content: str) -> int:
    if "\0" in content:
        raise InvalidInputError(f"{name} holds a NUL byte, which no program can be given", field=name)
    try:
        return len(os.fsencode(content)) + len(name) + 1
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name} holds half a surrogate pair, which is no text", field=name
        ) from error


def hook_environment(
    names: Iterable[str], path: str, inherited: Mapping[str, str], home: str
) -> tuple[tuple[str, str], ...]:
    """What the hook gets beside ENVEXEC_*, built up and not filtered down.

    PATH is fixed, LANG and TZ come from `inherited` when set, HOME is the service user's; each of
    `names` comes from the file at `path` (empty: none), else from `inherited`.

    Raises: ConfigError if a name changes how programs are loaded, or the file is not to be trusted.
    """
    found = {"PATH": DEFAULT_PATH, "HOME": home}
    found |= {name: inherited[name] for name in ("LANG", "TZ") if name in inherited}
    available = dict(inherited) | (_read_env_file(path) if path else {})
    for name in names:
        if name.startswith(_LOADER_PREFIXES):
            raise ConfigError(f"auth_hook_env: {name} is never passed to a hook")
        if name in available:
            found[name] = available[name]
    return tuple(found.items())


def _read_env_file(path: str) -> dict[str, str]:
    """`NAME=value` lines; whole-line `#` comments; one pair of quotes around a value is taken off."""
    try:
        about = os.stat(path)
        if is_writable_by_others(about, os.geteuid()):
            raise ConfigError(
                "auth_hook_env_file must belong to root and be writable by nobody else", path=path
            )
        text = read_bounded(path, ENV_FILE_LIMIT_BYTES, follow=True).decode()
    except (OSError, StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"auth_hook_env_file can't be read ({error})", path=path) from error
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, content = stripped.partition("=")
        if not equals or not name.isidentifier() or "\0" in content:
            raise ConfigError("expected NAME=value", path=path, line=number)
        quoted = len(content) >= 2 and content[0] == content[-1] and content[0] in "\"'"
        found[name] = content[1:-1] if quoted else content
    return found
