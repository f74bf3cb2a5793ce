"""What an admin can ask the agent about itself without a dispatcher: its health, its certificate.

Owns `self-check` and `self-ping`. Changes nothing.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta

from ctrl_exec.common.clock import openssl_time, utc_now
from ctrl_exec.common.errors import CtrlExecError, PeerError
from ctrl_exec.common.tls import client_context, server_context, wrap
from ctrl_exec_agent import generation, renewal
from ctrl_exec_agent.admission import announce_self_ping
from ctrl_exec_agent.allowlist import load_allowlist
from ctrl_exec_agent.config import load_agent_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec_agent.config import AgentConfig
    from ctrl_exec_agent.generation import Source

EXIT_OK, EXIT_FAILED, EXIT_CONFIG = 0, 1, 78
OK, WARN, FAIL = "ok", "warn", "fail"
_CONNECT_S = 10.0
_SOON = timedelta(days=30)

Finding = tuple[str, str]


def self_check(source: Source, *, as_json: bool) -> int:
    """Print every finding; 0 if the agent can serve, 78 if its settings are wrong, 1 for anything else."""
    try:
        config = load_agent_config(source.config_path, allowlist=source.allowlist_path)
        allowlist = load_allowlist(config.scripts_path, config.script_dirs)
        generation.check_profiles(config, allowlist)
    except CtrlExecError as error:
        _show([(FAIL, str(error))], as_json=as_json)
        return EXIT_CONFIG
    findings = [
        (OK, f"{config.path}: every key is known"),
        (OK, f"{config.scripts_path}: {len(allowlist.scripts)} scripts"),
    ]
    findings += _check_identity(config)
    findings += _check_places(config)
    findings.append((OK, f"scripts run as {_user()}"))
    _show(findings, as_json=as_json)
    if not generation.is_paired(config):
        return EXIT_CONFIG
    return EXIT_FAILED if any(level == FAIL for level, _ in findings) else EXIT_OK


def _check_identity(config: AgentConfig) -> Iterator[Finding]:
    try:
        generation.check_paired(config)
        server_context(config.cert_path, config.key_path, client_ca=config.ca_path, require_client=True)
        certificate = renewal.load_certificate(config.cert_path)
    except CtrlExecError as error:
        yield FAIL, str(error)
        return
    yield OK, f"{config.cert_path}: fits its key, is valid until {openssl_time(certificate.not_after)}"
    now = utc_now()
    if not certificate.not_before <= now <= certificate.not_after:
        yield FAIL, f"{config.cert_path}: is not valid now ({openssl_time(now)}); is the clock right?"
    elif certificate.not_after - now < _SOON:
        yield WARN, f"{config.cert_path}: expires soon, and no dispatcher has renewed it"
    try:
        with open(config.cert_path, encoding="ascii") as file:
            renewal.check_chain(file.read(), config.ca_path, "sslserver")
    except (CtrlExecError, OSError, ValueError) as error:
        yield FAIL, str(error)


def _check_places(config: AgentConfig) -> Iterator[Finding]:
    allowlist = load_allowlist(config.scripts_path, config.script_dirs)
    for warning in generation.warnings(config, allowlist):
        yield WARN, warning
    for path in (config.state_dir, config.runs_dir):
        if os.path.isdir(path) and not os.access(path, os.W_OK | os.X_OK):
            yield FAIL, f"{path}: can't be written by {_user()}"
    if not os.path.isdir(config.state_dir):
        yield FAIL, f"{config.state_dir}: does not exist"
    try:
        renewal.run_openssl(["version"])
    except CtrlExecError as error:
        yield FAIL, f"{error}: pairing and renewal need it"


def _user() -> str:
    import pwd

    uid = os.geteuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid}), who runs this check"
    except KeyError:
        return f"uid {uid}, who runs this check"


def _show(findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        checks = [{"level": level, "text": text} for level, text in findings]
        print(json.dumps({"ok": all(level != FAIL for level, _ in findings), "checks": checks}))
        return
    for level, text in findings:
        print(f"{level:<5} {text}")


def ask_own_certificate(config: AgentConfig, port: int | None) -> tuple[str, Certificate]:
    """(address, certificate) of the agent that listens where this configuration says.

    Raises: PeerError if none answers, or one with another key.
    """
    from ctrl_exec.common.certificate import parse_certificate

    port = port or config.port
    if not port:
        raise PeerError("agent.conf says port = 0: give the port with --port (the log's start line has it)")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.bind[0], config.bind[0])  # noqa: S104 - read, not bound
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    context = client_context(None, None, ca=config.ca_path)
    try:
        with socket.create_connection((host, port), _CONNECT_S) as plain:
            announce_self_ping(config.state_dir, plain.getsockname()[0])
            with wrap(context, plain) as secured:
                der = secured.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise PeerError(f"no agent answers on {address}: {error}", kind="unreachable") from error
    certificate = parse_certificate(der)
    if certificate.fingerprint != renewal.load_certificate(config.cert_path).fingerprint:
        raise PeerError(f"what answers on {address} has another key than {config.cert_path}")
    return address, certificate
