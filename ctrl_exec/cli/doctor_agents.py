"""The checks of `ctrl-exec doctor` on the agents: names, answers, certificates, clocks.

Owns what is asked of each agent and the remedy for each failure. It asks no auth hook: whoever may
read the dispatcher's key may ask what is wrong. Changes nothing on either side.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from ctrl_exec.cli.findings import Finding
from ctrl_exec.cli.output import plural
from ctrl_exec.common.errors import CtrlExecError, MessageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ctrl_exec.dispatcher import Dispatcher
    from ctrl_exec.services.agent_answers import PingResult
    from ctrl_exec.services.registry import AgentRecord
    from ctrl_exec.services.targets import Target

SOON_DAYS = 14
CLOCK_LIMIT_S = 60
# A clock is read on a connection of its own, one agent after another: enough to see what is wrong.
MAX_CLOCKS = 25
CLOCK_TIMEOUT_S = 3.0
REPLY_LIMIT_BYTES = 65536

# What a failing state or its reason means, in the order of looking; the first that fits is shown.
REMEDIES = (
    ("name resolution", "add the name to DNS or /etc/hosts, or `ctrl-exec edit-agent {name} --lookup-by ip`"),
    (
        "certificate of another agent",
        "another host answers there: correct the address, or pair the host again",
    ),
    ("revoked", "the agent was revoked: pair it again with --replace, or unpair it"),
    (
        "expired",
        "pair the host again: `ctrl-exec-agent request-pairing` there, `ctrl-exec approve --replace` here",
    ),
    (
        "refused",
        "on the agent: is it running (`systemctl status ctrl-exec-agent`), does it trust this dispatcher?",
    ),
    ("unreachable", "is the host up, the agent running, its port open in the firewall?"),
    ("timeout", "the host is slow or a firewall drops packets to the agent's port"),
    ("", "`ctrl-exec-agent self-check` on the host says more"),
)


def examine(dispatcher: Dispatcher) -> Iterator[Finding]:
    """Run every check on the registered agents."""
    try:
        targets = registered(dispatcher)
        if not targets:
            yield Finding("ok", "agents", "none registered")
            return
        for target in targets:
            yield from check_record(dispatcher, target.record)
        yield from check_answers(dispatcher, targets)
    except CtrlExecError as error:
        yield Finding("problem", "agents", str(error), "mend what is said above first")


def registered(dispatcher: Dispatcher) -> tuple[Target, ...]:
    """Give every agent of the registry."""
    from ctrl_exec.services.targets import resolve_targets

    if not dispatcher.registry.names():
        return ()
    return resolve_targets(("@all",), dispatcher.registry, len(dispatcher.registry.names())).hosts


def check_record(dispatcher: Dispatcher, record: AgentRecord) -> Iterator[Finding]:
    """Look at what the registry says of one agent."""
    from ctrl_exec.common.clock import parse_openssl_time, utc_now

    what = f"agent {record.hostname}"
    if record.fingerprint and dispatcher.registry.is_revoked(record.fingerprint):
        yield Finding(
            "warning", what, "its key is revoked", f"`ctrl-exec unpair {record.hostname}`, or pair it again"
        )
    if not record.expiry:
        return
    try:
        left_days = (parse_openssl_time(record.expiry) - utc_now()).total_seconds() / 86400
    except MessageError:
        yield Finding(
            "warning", what, f"its record has no readable expiry: {record.expiry!r}", "pair it again"
        )
        return
    if left_days <= 0:
        yield Finding(
            "problem",
            what,
            f"its certificate expired on {record.expiry}",
            remedy_for("expired", record.hostname),
        )
    elif left_days < SOON_DAYS:
        remedy = remedy_for("expired", record.hostname)
        yield Finding("warning", what, f"its certificate expires on {record.expiry}", remedy)


def check_answers(dispatcher: Dispatcher, targets: Sequence[Target]) -> Iterator[Finding]:
    """Ping every agent, then compare the clocks of the first that answer."""
    from ctrl_exec.common.names import new_reqid

    answered = []
    for result in dispatcher.agents.ping(targets, new_reqid()):
        if result.is_ok:
            answered.append(result.host)
        else:
            yield failure(result)
    if answered:
        yield Finding("ok", "agents", f"{plural(len(answered), 'agent')} of {len(targets)} answered")
    by_name = {target.name: target for target in targets}
    for name in answered[:MAX_CLOCKS]:
        yield from check_clock(dispatcher, by_name[name])


def failure(result: PingResult) -> Finding:
    """Say why an agent did not answer and what to do."""
    return Finding(
        "problem",
        f"agent {result.host}",
        result.error,
        remedy_for(f"{result.error} {result.state}", result.host),
    )


def remedy_for(words: str, name: str) -> str:
    """Give the remedy for a failure's words."""
    lowered = words.lower()
    return next(remedy for mark, remedy in REMEDIES if mark in lowered).format(name=name)


def check_clock(dispatcher: Dispatcher, target: Target) -> Iterator[Finding]:
    """Compare the agent's `Date` with our clock; an agent that sends none is passed over."""
    from ctrl_exec.common.clock import epoch_now

    theirs = agent_clock_s(dispatcher, target)
    if theirs is None:
        return
    apart_s = theirs - epoch_now()
    if abs(apart_s) > CLOCK_LIMIT_S:
        direction = "ahead of" if apart_s > 0 else "behind"
        detail = f"its clock is {abs(apart_s)} s {direction} this machine's"
        remedy = "start a time service (systemd-timesyncd, chrony) on both hosts"
        yield Finding("problem", f"agent {target.name}", detail, remedy)


def agent_clock_s(dispatcher: Dispatcher, target: Target) -> int | None:
    """Read the `Date` of an agent's answer in seconds since the epoch; None where there is none."""
    try:
        return parsed_date_s(asked_head(dispatcher, target))
    except (OSError, CtrlExecError):
        return None


def asked_head(dispatcher: Dispatcher, target: Target) -> bytes:
    """Send one ping over a connection of its own and give the head of the answer."""
    from ctrl_exec.common.tls import client_context, wrap

    config = dispatcher.config
    context = client_context(config.cert_path, config.key_path, ca=config.ca_cert_path)
    record = target.record
    host = record.ip if record.lookup_by == "ip" else record.hostname
    body = b"{}"
    head = f"POST /ping HTTP/1.0\r\nHost: agent\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with (
        socket.create_connection((host, target.port), timeout=CLOCK_TIMEOUT_S) as plain,
        wrap(context, plain) as stream,
    ):
        stream.sendall(head + body)
        reply = b""
        while b"\r\n\r\n" not in reply and len(reply) < REPLY_LIMIT_BYTES:
            chunk = stream.recv(8192)
            if not chunk:
                break
            reply += chunk
    return reply.partition(b"\r\n\r\n")[0]


def parsed_date_s(head: bytes) -> int | None:
    """Find the `Date` header in the head of an answer."""
    import calendar
    import time

    for line in head.split(b"\r\n")[1:]:
        name, _, text = line.partition(b":")
        if name.strip().lower() == b"date":
            with suppress(ValueError):
                shown = text.strip().decode("ascii", "replace")
                return calendar.timegm(time.strptime(shown, "%a, %d %b %Y %H:%M:%S GMT"))
    return None
