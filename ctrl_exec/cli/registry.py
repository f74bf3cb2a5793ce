"""`ctrl-exec list-agents`, `edit-agent`, `unpair`, `revoke`: what is known of the paired agents."""

from __future__ import annotations

from ctrl_exec.cli.command import Argument, Command, Option
from ctrl_exec.cli.pairing import ADDRESS_OPTIONS, TAGS_OPTION, read_tags, record_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.cli.arguments import Arguments
    from ctrl_exec.cli.context import Context

NAME = Argument("NAME", "a registered agent", 1, 1, "agent")
NAMES = Argument("NAME", "a registered agent", 1, None, "agent")
REASON_OPTION = Option(("--reason",), "why, for the record", "TEXT")


def execute_list(context: Context, _arguments: Arguments) -> int:
    """Show the registered agents and when each was last heard."""
    registry = context.dispatcher.registry
    revoked = {each.fingerprint for each in registry.revocations()}
    agents = []
    for record in registry.records():
        contact = registry.contact(record.hostname)
        agents.append(
            record_json(record)
            | {"revoked": record.fingerprint in revoked, "last_contact": contact.get("at", "")}
            | {"version": contact.get("version", "")}
        )
    context.output.answer({"ok": True, "agents": agents}, lambda: show_agents(context, agents))
    return 0


def show_agents(context: Context, agents: list[dict[str, object]]) -> None:
    """Print the registry as a table."""
    rows = []
    for agent in agents:
        tags = agent["tags"]
        shown = ",".join(f"{key}={text}" for key, text in tags.items()) if isinstance(tags, dict) else ""
        state = "revoked" if agent["revoked"] else agent["serial_status"]
        address = f"{agent['ip'] or '-'}:{agent['port']}"
        expiry = day_of(str(agent["expiry"]))
        rows.append((agent["hostname"], address, expiry, state, agent["last_contact"] or "-", shown))
    context.output.table(("HOST", "ADDRESS", "EXPIRY", "STATE", "LAST CONTACT", "TAGS"), rows)


def day_of(expiry: str) -> str:
    """Give the day of a certificate's end, short enough for a narrow terminal; what is no time stays."""
    from ctrl_exec.common.clock import parse_openssl_time
    from ctrl_exec.common.errors import MessageError

    try:
        return f"{parse_openssl_time(expiry):%Y-%m-%d}"
    except MessageError:
        return expiry


def execute_edit(context: Context, arguments: Arguments) -> int:
    """Change the address, port, lookup or tags of an agent's record."""
    from ctrl_exec.operations.agents import AgentChange, edit_agent
    from ctrl_exec.operations.pairing import open_registry

    change = AgentChange(
        ip=arguments.text("ip"),
        port=arguments.port("agent-port"),
        lookup_by=arguments.text("lookup-by"),
        tags=read_tags(arguments.many("tags")),
        removed_tags=arguments.many("untag"),
    )
    record = edit_agent(open_registry(context.config), arguments.words[0], change)
    document = {"ok": True, "agent": record_json(record)}
    context.output.answer(document, lambda: context.output.line(f"changed {record.hostname}"))
    return 0


def execute_unpair(context: Context, arguments: Arguments) -> int:
    """Forget agents."""
    from ctrl_exec.operations.agents import unpair
    from ctrl_exec.operations.pairing import open_registry

    registry = open_registry(context.config)
    is_revoking = arguments.flag("revoke")
    unpair(
        registry, context.log, arguments.words, revoking=is_revoking, reason=arguments.text("reason") or ""
    )
    document = {"ok": True, "unpaired": list(arguments.words), "revoked": is_revoking}
    words = "unpaired and revoked" if is_revoking else "unpaired"
    context.output.answer(document, lambda: context.output.line(f"{words} {', '.join(arguments.words)}"))
    if not is_revoking:
        context.output.message("their certificates stay valid until they expire; `unpair --revoke` ends that")
    return 0


def execute_revoke(context: Context, arguments: Arguments) -> int:
    """Refuse agents' keys from now on."""
    from ctrl_exec.common.value import as_dict
    from ctrl_exec.operations.agents import revoke
    from ctrl_exec.operations.pairing import open_registry

    done = revoke(open_registry(context.config), context.log, arguments.words, arguments.text("reason") or "")
    document = {"ok": True, "revoked": [as_dict(each) for each in done]}
    context.output.answer(document, lambda: context.output.line(f"revoked {', '.join(arguments.words)}"))
    return 0


COMMANDS = {
    "list-agents": Command("show the paired agents", execute_list),
    "edit-agent": Command(
        "change what is known of an agent",
        execute_edit,
        arguments=(NAME,),
        options=(
            *ADDRESS_OPTIONS,
            TAGS_OPTION,
            Option(("--untag",), "take this tag away", "TAG", is_repeated=True),
        ),
        stays_root=True,
        examples=("ctrl-exec edit-agent web-01 --tags env=prod,role=web",),
    ),
    "unpair": Command(
        "forget agents",
        execute_unpair,
        arguments=(NAMES,),
        options=(
            Option(("--revoke",), "refuse their keys for ever, also when they ask to be paired again"),
            REASON_OPTION,
        ),
        stays_root=True,
    ),
    "revoke": Command(
        "refuse agents' keys at once",
        execute_revoke,
        arguments=(NAMES,),
        options=(REASON_OPTION,),
        stays_root=True,
    ),
}
