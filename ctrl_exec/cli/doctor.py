"""The checks of `ctrl-exec doctor` on this machine: files, keys, hook, ports, logs.

Owns what is looked at and the remedy for each mistake. It changes nothing. Every check yields
findings and none raises: a broken installation is exactly where it must work.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from ctrl_exec.cli.doctor_local import check_local
from ctrl_exec.cli.findings import Account, Finding, account_named
from ctrl_exec.common.errors import ConfigError, CtrlExecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec.common.tls import TlsSocket
    from ctrl_exec.config import Config

SOON_DAYS = 30
LOW_SPACE_BYTES = 100 << 20
LOCALHOST = ("127.0.0.1", "::1")
CERTIFICATE_LIMIT_BYTES = 1 << 20


def check_file(path: str) -> Iterator[Finding]:
    """Look at the permissions of the configuration file itself."""
    try:
        about = os.stat(path)
    except OSError as error:
        remedy = "`make install-system` makes the system's; --config FILE or CTRL_EXEC_CONFIG names another"
        yield Finding("problem", "configuration", f"{path}: {error.strerror}", remedy)
        return
    if about.st_mode & 0o022 and not stat.S_ISVTX & about.st_mode:
        yield Finding("problem", "configuration", f"{path} can be written by others", f"chmod go-w {path}")
    else:
        yield Finding("ok", "configuration", path)


def check_directories(config: Config, account: Account) -> Iterator[Finding]:
    """Look at the directories: do they exist, can the service user work in them."""
    yield from check_reach("configuration directory", config.etc_dir, account, 5, "ctrl-exec setup-ctrl-exec")
    yield from check_reach("state directory", config.state_dir, account, 5, "ctrl-exec setup-ctrl-exec")
    for path in (config.contacts_dir, config.pairing_dir, config.locks_dir, config.runs_dir):
        if os.path.isdir(path):
            yield from check_reach("state directory", path, account, 7, "")
    if os.path.isdir(config.agents_dir):
        yield from check_reach("registry", config.agents_dir, account, 5, "")
    with suppress(OSError):
        about = os.statvfs(config.state_dir)
        free_bytes = about.f_bavail * about.f_frsize
        if free_bytes < LOW_SPACE_BYTES:
            detail = f"{config.state_dir}: {free_bytes >> 20} MiB free"
            yield Finding("problem", "disk", detail, "free some space, or lower run_retention")


def check_reach(what: str, path: str, account: Account, wanted: int, maker: str) -> Iterator[Finding]:
    """Look whether the account can use a file or directory."""
    obstacle = account.obstacle(path, wanted)
    if not obstacle:
        yield Finding("ok", what, path)
    elif maker and not os.path.exists(path):
        yield Finding("problem", what, obstacle, f"run `{maker}`")
    else:
        yield Finding("problem", what, obstacle, f"give {path} to {account.name} (chown, chmod)")


def check_ca_key(config: Config, account: Account) -> Iterator[Finding]:
    """Look whether the CA's key is root's alone."""
    try:
        about = os.stat(config.ca_key_path)
    except FileNotFoundError:
        yield Finding(
            "warning",
            "CA key",
            f"no {config.ca_key_path}",
            "run `ctrl-exec setup-ca`, unless the CA is elsewhere",
        )
        return
    except OSError as error:
        yield Finding("ok", "CA key", f"{config.ca_key_path}: {error.strerror}")
        return
    if about.st_mode & 0o077:
        remedy = f"chmod 600 {config.ca_key_path}"
        yield Finding("problem", "CA key", f"{config.ca_key_path} can be read by others", remedy)
    elif config.service_user and account.uid != 0 and about.st_uid == account.uid:
        remedy = f"chown root:root {config.ca_key_path}"
        yield Finding("problem", "CA key", f"{config.ca_key_path} belongs to {account.name}", remedy)
    else:
        yield Finding("ok", "CA key", config.ca_key_path)


def check_certificates(config: Config, account: Account) -> Iterator[Finding]:
    """Look at the certificates of the CA, the dispatcher and the API: dates, keys, issuers."""
    yield from check_certificate("CA certificate", config.ca_cert_path, "run `ctrl-exec setup-ca`")
    yield from check_certificate(
        "dispatcher certificate", config.cert_path, "run `ctrl-exec setup-ctrl-exec`"
    )
    yield from check_pair("dispatcher certificate", config.cert_path, config.key_path, config.ca_cert_path)
    if os.path.exists(config.key_path):
        yield from check_reach("dispatcher key", config.key_path, account, 4, "")
    if config.api_cert:
        yield from check_certificate("API certificate", config.api_cert, "issue a new one and reload the API")
        yield from check_pair("API certificate", config.api_cert, config.api_key, "")
        yield from check_reach("API key", config.api_key, account, 4, "")


def check_certificate(what: str, path: str, remedy: str) -> Iterator[Finding]:
    """Look at the dates of one certificate."""
    try:
        found = read_certificate(path)
    except (OSError, CtrlExecError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        yield Finding("problem", what, reason if path in reason else f"{path}: {reason}", remedy)
        return
    yield dated(what, path, found, remedy)


def dated(what: str, path: str, found: Certificate, remedy: str) -> Finding:
    """Judge the dates of a certificate by this machine's clock."""
    from ctrl_exec.common.clock import iso_z, utc_now

    now = utc_now()
    left_days = (found.not_after - now).days
    if found.not_before > now:
        detail = f"{path} is not valid before {iso_z(found.not_before)}"
        return Finding("problem", what, detail, "set this machine's clock, or wait")
    if found.not_after <= now:
        return Finding("problem", what, f"{path} expired on {iso_z(found.not_after)}", remedy)
    if left_days < SOON_DAYS:
        return Finding("warning", what, f"{path} expires in {left_days} days", remedy)
    return Finding("ok", what, f"{path}, {left_days} days left")


def read_certificate(path: str) -> Certificate:
    """Read the first certificate of a PEM file.

    Raises:
        OSError, CtrlExecError: it cannot be read, or is none.
    """
    from ctrl_exec.common.certificate import parse_certificate, pem_to_der
    from ctrl_exec.common.files import read_bounded

    return parse_certificate(
        pem_to_der(read_bounded(path, CERTIFICATE_LIMIT_BYTES, follow=True).decode("ascii", "replace"))
    )


def check_pair(what: str, cert_path: str, key_path: str, ca_path: str) -> Iterator[Finding]:
    """Look whether certificate and key belong together."""
    from ctrl_exec.common.tls import client_context

    if not (os.access(cert_path, os.R_OK) and os.access(key_path, os.R_OK)):
        return
    try:
        client_context(cert_path, key_path, ca=ca_path if ca_path and os.path.exists(ca_path) else None)
    except CtrlExecError as error:
        yield Finding("problem", what, str(error), "use the key the certificate was made for")


def check_hook(config: Config, account: Account) -> Iterator[Finding]:
    """Look whether the auth hook can be started and nobody else can change it."""
    path = config.auth_hook
    if not path:
        return
    obstacle = account.obstacle(path, 5)
    if obstacle:
        yield Finding(
            "problem", "auth hook", obstacle, f"chmod 755 {path}; without it every request is denied"
        )
        return
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        yield Finding("problem", "auth hook", f"{path} is not a file", "set auth_hook to a program")
    elif about.st_mode & 0o022 or about.st_uid not in (0, os.geteuid()):
        yield Finding(
            "problem", "auth hook", f"{path} can be changed by others", f"chown root {path}; chmod 755 {path}"
        )
    else:
        yield from check_interpreter(path)


def check_interpreter(path: str) -> Iterator[Finding]:
    """Look whether the program a script names in its first line exists."""
    try:
        with open(path, "rb") as stream:
            first = stream.readline(4096)
    except OSError as error:
        yield Finding("warning", "auth hook", f"{path}: {error.strerror}", "run doctor as root")
        return
    words = first[2:].split() if first.startswith(b"#!") else []
    if words and not os.access(words[0], os.X_OK):
        interpreter = words[0].decode("utf-8", "replace")
        yield Finding(
            "problem", "auth hook", f"{path}: no interpreter {interpreter}", "install it, or change the line"
        )
    elif first.startswith(b"#!") and not words:
        yield Finding("problem", "auth hook", f"{path}: an empty #! line", "name the interpreter")
    else:
        yield Finding("ok", "auth hook", path)


def check_exposure(config: Config, _account: Account) -> Iterator[Finding]:
    """Look at who can reach the API and what it asks of them."""
    is_open = any(address not in LOCALHOST and not address.startswith("127.") for address in config.api_bind)
    if config.api_auth_default == "allow" and not config.auth_hook:
        level = "problem" if is_open and not config.api_client_ca else "warning"
        remedy = "set auth_hook, or api_auth_default = deny"
        yield Finding(
            "problem" if level == "problem" else "warning",
            "API access",
            "anyone who can connect may do all",
            remedy,
        )
    elif not config.auth_hook and config.api_auth_default == "deny":
        remedy = "set auth_hook (docs/auth-hook.md)"
        yield Finding("warning", "API access", "no auth hook: the API refuses every request", remedy)
    if is_open and not config.api_cert:
        addresses = ", ".join(config.api_bind)
        remedy = "set api_cert and api_key, or api_bind = 127.0.0.1"
        yield Finding(
            "warning", "API access", f"plain HTTP on {addresses}: tokens can be read on the way", remedy
        )


def check_ports(config: Config, _account: Account) -> Iterator[Finding]:
    """Look whether the ports are free or used by us."""
    for address in config.api_bind:
        yield from check_port(
            "API port", address, config.api_port, is_api=True, has_tls=bool(config.api_cert)
        )
    for address in config.pairing_bind:
        yield from check_port("pairing port", address, config.pairing_port)


def check_port(
    what: str, address: str, port: int, *, is_api: bool = False, has_tls: bool = False
) -> Iterator[Finding]:
    """Look whether one address and port can be bound."""
    import errno
    import socket

    if port == 0:
        return
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                yield port_in_use(what, shown, address, port, is_api=is_api, has_tls=has_tls)
            elif error.errno == errno.EADDRNOTAVAIL:
                yield Finding(
                    "problem", what, f"{address} is no address of this machine", "correct the bind address"
                )
            else:
                yield Finding(
                    "problem", what, f"{shown}: {error.strerror}", "choose another port, or run as root"
                )
            return
    yield Finding("ok", what, f"{shown} is free")


def port_in_use(what: str, shown: str, address: str, port: int, *, is_api: bool, has_tls: bool) -> Finding:
    """Tell our own daemon from a stranger on the port."""
    if is_api and answers_as_api(address, port, has_tls=has_tls):
        return Finding("ok", what, f"ctrl-exec-api answers on {shown}")
    if not is_api:
        return Finding(
            "warning", what, f"{shown} is in use", "fine while pairing mode runs; else see `ss -ltnp`"
        )
    remedy = f"stop what uses it (`ss -ltnp | grep :{port}`), or set another port"
    return Finding("problem", what, f"{shown} is taken by another program", remedy)


def answers_as_api(address: str, port: int, *, has_tls: bool) -> bool:
    """Whether an HTTP server that calls itself ctrl-exec answers there; any status counts."""
    import socket

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - compared, not bound
    try:
        with socket.create_connection((host, port), timeout=3) as plain:
            stream: socket.socket | TlsSocket = plain
            if has_tls:
                from ctrl_exec.common.tls import client_context, wrap

                stream = wrap(client_context(None, None, ca=None), plain)
            with stream:
                stream.settimeout(3)
                stream.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                reply = b""
                while len(reply) < 65536 and (chunk := stream.recv(8192)):
                    reply += chunk
    except (OSError, CtrlExecError):
        return False
    return b"x-request-id:" in reply.lower() and b'"ok"' in reply


def check_logs(config: Config, _account: Account) -> Iterator[Finding]:
    """Look whether log lines arrive somewhere."""
    from ctrl_exec.common.log import JOURNAL_SOCKET, SYSLOG_SOCKET

    path = {"syslog": SYSLOG_SOCKET, "journal": JOURNAL_SOCKET}.get(config.log_target, "")
    if path and not os.path.exists(path):
        remedy = "start a syslog daemon, or set log_target = stderr"
        yield Finding("warning", "logs", f"log_target = {config.log_target}, but there is no {path}", remedy)
    else:
        yield Finding("ok", "logs", f"log_target = {config.log_target}")


CHECKS: tuple[Callable[[Config, Account], Iterator[Finding]], ...] = (
    check_directories,
    check_ca_key,
    check_certificates,
    check_hook,
    check_exposure,
    check_ports,
    check_local,
    check_logs,
)


def examine(config: Config) -> Iterator[Finding]:
    """Run every check on this machine."""
    try:
        account = account_named(config.service_user, config.service_group)
    except ConfigError as error:
        remedy = "create it (`make install-system` does), or set `service_user =` to nothing"
        yield Finding("problem", "service user", error.detail, remedy)
        account = account_named("", "")
    for check in CHECKS:
        yield from check(config, account)
