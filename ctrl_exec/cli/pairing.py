"""`ctrl-exec setup-ca` and `setup-ctrl-exec`, `pairing-mode` and `pairing-token`, and the decisions.

Owns the words of the pairing commands; what they do is in `operations/pairing.py` and
`operations/setup.py`, the life of pairing mode in `cli/pairing_mode.py`.
"""

from __future__ import annotations

from ctrl_exec.cli.command import TIMEOUT_OPTION, Argument, Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context
    from ctrl_exec.operations.pairing import ShownRequest, Signer

DEFAULT_TTL_S = 3600.0
REQUEST = Argument(
    "ID|NAME", "a waiting request, by its id, or by its host name where it is the only one", 1, 1, "request"
)
TAGS_OPTION = Option(
    ("-t", "--tag", "--tags"), "a tag of the agent in the registry", "TAG=VALUE[,…]", is_repeated=True
)
ADDRESS_OPTIONS = (
    Option(("--ip",), "the address to record for the agent", "ADDRESS"),
    Option(("--agent-port",), "the port the agent listens on (default: what it said, or 7443)", "PORT"),
    Option(
        ("--lookup-by",), "dial the agent by its name or by its address", "HOW", choices=("hostname", "ip")
    ),
)


def read_tags(words: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The tags of `TAG=VALUE` words. Raises: UsageError; InvalidInputError."""
    from ctrl_exec.common.errors import UsageError
    from ctrl_exec.services.registry import check_tags

    tags: dict[str, object] = {}
    for word in (part.strip() for each in words for part in each.split(",")):
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"--tag: expected TAG=VALUE, not {word!r}")
        tags[key] = text
    return check_tags(tags)


def open_signer(context: Context) -> Signer:
    """The signer of this command's configuration."""
    from ctrl_exec.operations.pairing import Signer

    return Signer(context.config, context.log)


def execute_setup_ca(context: Context, _arguments: Arguments) -> int:
    """Make the CA, or check the one that is there."""
    from ctrl_exec.operations.setup import setup_ca

    done = setup_ca(context.config)
    output = context.output
    document = {"ok": True, "created": done.is_new, "ca": done.path, "fingerprint": done.fingerprint}

    def show() -> None:
        output.line(("made a new CA: " if done.is_new else "the CA is there already: ") + done.path)
        output.line(f"fingerprint (SHA-256): {done.fingerprint}")
        output.message("agents can check it: ctrl-exec-agent request-pairing --ca-fingerprint FINGERPRINT")

    output.answer(document, show)
    return 0


def execute_setup(context: Context, arguments: Arguments) -> int:
    """Make the dispatcher's identity and directories; with --with-token-hook the first hour of the API."""
    from ctrl_exec.operations.setup import setup_identity

    done = setup_identity(context.config)
    document: dict[str, object] = {
        "ok": True,
        "origin": done.origin,
        "serial": done.identity.serial,
        "dispatcher_id": done.dispatcher_id,
        "certificate": done.identity.path,
    }
    words = {
        "new": "made a new identity",
        "adopted": "adopted the identity of the existing deployment",
        "kept": "the identity is there already",
    }
    lines = [f"{words[done.origin]}: {done.dispatcher_id}, serial {done.identity.serial}"]
    if arguments.flag("with-token-hook"):
        more, shown = open_first_hour(context)
        document |= more
        lines += shown
    context.output.answer(document, lambda: context.output.line("\n".join(lines)))
    return 0


def open_first_hour(context: Context) -> tuple[dict[str, object], list[str]]:
    """Issue the API's certificate and install the token hook; gives what to show, as JSON and as lines."""
    from ctrl_exec.operations.setup import setup_api
    from ctrl_exec.operations.token_hook import install_token_hook

    api = setup_api(context.config)
    settings = {"api_cert": api.certificate_path, "api_key": api.key_path}
    hook = install_token_hook(context.config, context.config_path, settings)
    document: dict[str, object] = {
        "hook": hook.hook_path,
        "token": hook.token or None,
        "api_cert": api.certificate_path,
        "settings": list(hook.added_settings),
    }
    lines = [f"installed the auth hook: {hook.hook_path}", f"API certificate: {api.certificate_path}"]
    lines += [f"set in {context.config_path}: {line}" for line in hook.added_settings]
    told = f"token (shown this once): {hook.token}" if hook.token else "its tokens are there already"
    return document, [*lines, told]


def execute_list_requests(context: Context, _arguments: Arguments) -> int:
    """Show the requests that wait for a decision."""
    found = open_signer(context).requests()
    document = {"ok": True, "requests": [each.as_json() for each in found]}
    context.output.answer(document, lambda: show_requests(context, found))
    return 0


def show_requests(context: Context, found: Iterable[ShownRequest]) -> None:
    """Print the waiting requests as a table, and what to compare."""
    from datetime import UTC, datetime

    from ctrl_exec.common.clock import iso_z

    rows = [
        (
            each.request.hostname,
            each.request.id,
            each.code,
            each.request.ip,
            iso_z(datetime.fromtimestamp(each.request.received, UTC)),
            ", ".join(notes_of(each)),
        )
        for each in found
    ]
    context.output.table(("HOST", "ID", "CODE", "IP", "RECEIVED", "NOTES"), rows)
    if rows:
        context.output.message("compare the code with the one the agent shows, then: ctrl-exec approve ID")


def notes_of(shown: ShownRequest) -> list[str]:
    """What the approver must know of a request beyond its code."""
    request = shown.request
    notes = []
    if request.is_legacy:
        notes.append("legacy: no protection against a relay")
    if shown.is_registered:
        notes.append("name is taken: --replace")
    if shown.is_revoked:
        notes.append("key is revoked")
    if request.proof:
        notes.append("pairing token")
    if request.remote_ip != request.ip:
        notes.append(f"called from {request.remote_ip}")
    return notes


def execute_approve(context: Context, arguments: Arguments) -> int:
    """Sign a request and register its agent."""
    from ctrl_exec.operations.pairing import RELAY_WARNING, Approval

    approval = Approval(
        ip=arguments.text("ip") or "",
        port=arguments.port("agent-port") or 0,
        lookup_by=arguments.text("lookup-by") or "",
        tags=read_tags(arguments.many("tags")),
        code=arguments.text("code") or "",
        is_legacy=arguments.flag("legacy"),
        is_replacing=arguments.flag("replace"),
    )
    if approval.is_legacy:
        context.output.message(f"note: a legacy request: {RELAY_WARNING}")
    record = open_signer(context).approve(arguments.words[0], approval)
    document = {"ok": True, "agent": record_json(record)}
    context.output.answer(
        document,
        lambda: context.output.line(
            f"approved {record.hostname}: serial {record.serial} until {record.expiry}"
        ),
    )
    return 0


def execute_deny(context: Context, arguments: Arguments) -> int:
    """Refuse a request."""
    shown = open_signer(context).deny(arguments.words[0], arguments.text("reason") or "")
    document = {"ok": True, "id": shown.request.id, "hostname": shown.request.hostname, "denied": True}
    context.output.answer(document, lambda: context.output.line(f"denied {shown.request.hostname}"))
    return 0


def execute_token(context: Context, arguments: Arguments) -> int:
    """Make a pairing token and print it, the only time it is shown."""
    from ctrl_exec.common.clock import epoch_now
    from ctrl_exec.common.errors import UsageError
    from ctrl_exec.operations.pairing import make_token

    name = arguments.text("name")
    if name is None:
        raise UsageError("--name is missing: a token is for one agent name")
    ttl_s = int(arguments.duration_s("ttl") or DEFAULT_TTL_S)
    token = make_token(context.config, name, ttl_s)
    document = {"ok": True, "token": token, "name": name.lower(), "expires": epoch_now() + ttl_s}
    context.output.answer(document, lambda: context.output.line(token))
    return 0


def execute_pairing_mode(context: Context, arguments: Arguments) -> int:
    """Open the pairing port and decide, or start or stop a pairing mode in the background."""
    from ctrl_exec.cli import pairing_mode

    action = arguments.words[0] if arguments.words else "run"
    if action == "stop":
        return pairing_mode.stop(context)
    return pairing_mode.start(context, arguments.duration_s("timeout"), in_background=action == "start")


def record_json(record: object) -> dict[str, object]:
    """A registry record as JSON, its tags as an object."""
    from ctrl_exec.common.value import as_dict

    found = as_dict(record)
    return found | {"tags": dict(found["tags"])}


COMMANDS = {
    "setup-ca": Command(
        "make the private CA, or check the one that is there",
        execute_setup_ca,
        stays_root=True,
        description="An existing CA, also an RSA one of an older deployment, is kept as it is.",
    ),
    "setup-ctrl-exec": Command(
        "make the dispatcher's identity and directories",
        execute_setup,
        options=(
            Option(
                ("--with-token-hook",),
                "install the token-file auth hook, print its first token, and issue the API's certificate",
            ),
        ),
        stays_root=True,
        description="An existing identity is kept; one of an older deployment in ca_dir is adopted.",
        examples=("ctrl-exec setup-ca && ctrl-exec setup-ctrl-exec --with-token-hook",),
    ),
    "pairing-mode": Command(
        "let agents ask to be paired, and decide",
        execute_pairing_mode,
        arguments=(
            Argument("start|stop", "run it in the background, or end that", 0, 1, choices=("start", "stop")),
        ),
        options=(TIMEOUT_OPTION,),
        stays_root=True,
        description=(
            "On a terminal each request is shown with its code and you are asked; elsewhere, and from "
            "another terminal, list-requests, approve and deny decide. Ctrl-C ends it."
        ),
    ),
    "list-requests": Command(
        "show the pairing requests that wait for a decision", execute_list_requests, stays_root=True
    ),
    "approve": Command(
        "sign a pairing request and register its agent",
        execute_approve,
        arguments=(REQUEST,),
        options=(
            *ADDRESS_OPTIONS,
            TAGS_OPTION,
            Option(("--code",), "the code the agent shows; refused if the request has another", "CODE"),
            Option(("--legacy",), "approve an older peer, whose code does not protect against a relay"),
            Option(("--replace",), "give a name that is registered already to this agent"),
        ),
        stays_root=True,
        examples=("ctrl-exec approve web-01 --code 042137 -t env=prod",),
    ),
    "deny": Command(
        "refuse a pairing request",
        execute_deny,
        arguments=(REQUEST,),
        options=(Option(("--reason",), "what the agent is told", "TEXT"),),
        stays_root=True,
    ),
    "pairing-token": Command(
        "make a token with which one agent pairs without a person",
        execute_token,
        options=(
            Option(("--name",), "the agent name it is for", "NAME"),
            Option(("--ttl",), "how long it is good: 30m, 1h (default), 7d", "TIME"),
        ),
        stays_root=True,
        examples=("ctrl-exec pairing-token --name web-01 --ttl 1h > token",),
    ),
}
