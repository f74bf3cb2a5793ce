"""A real mail server (aiosmtpd) in a process of its own: STARTTLS, TLS from the first byte, sign-in, refusals.

python -m tests.support.mail_server DIRECTORY    its ports in DIRECTORY/ports, what came in DIRECTORY/mail
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.evidence import note_log
from tests.support.polling import eventually
from tests.support.processes import ROOT, environment

USER, PASSWORD = "ctrl-exec", "a password of the mail server"
PORTS = ("starttls", "tls", "none", "stranger", "grudging")
"""What is served at the ports: `stranger` has a certificate of another CA, `grudging` greets with 554."""


@dataclass
class MailServerProcess:
    """Where it listens, by security, and where what came is kept."""

    directory: Path
    ports: dict[str, int]

    @property
    def authority(self) -> str:
        """The file of the CA that clients trust."""
        return str(self.directory / "ca.pem")

    def mails(self) -> list[dict[str, Any]]:
        """What was handed in: `recipients`, `sender`, `text`, `is_secure`, `user`."""
        return [json.loads(line) for line in (self.directory / "mail").read_text().splitlines()]


@contextlib.contextmanager
def mail_server(directory: Path) -> Iterator[MailServerProcess]:
    """The server, for as long as the block lasts."""
    import trustme

    for name in ("server", "stranger"):
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{name}.pem"))
        if name == "server":
            authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    (directory / "mail").touch()
    argv = [sys.executable, "-m", "tests.support.mail_server", str(directory)]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(argv, cwd=ROOT, env=environment(), stdout=log, stderr=log) as process,
    ):
        note_log(directory / "log", "mail server")
        try:
            ports = eventually(lambda: _read_ports(directory), what="the mail server listens")
            assert ports is not None
            yield MailServerProcess(directory, ports)
        finally:
            process.kill()


def _read_ports(directory: Path) -> dict[str, int] | None:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((directory / "ports").read_text()))
    return None


class Clerk:
    """Takes mail; recipients say by their names what is to become of it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "mail"

    async def handle_RCPT(
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: list[str]
    ) -> str:
        if address.startswith(("450", "550")):
            return f"{address[:3]} not this one"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        for address in envelope.rcpt_tos:
            if address.startswith(("data-451", "data-554")):
                return f"{address[5:8]} not this one"
        mail = {
            "recipients": envelope.rcpt_tos,
            "sender": envelope.mail_from,
            "text": envelope.content.decode(),
            "is_secure": server.transport.get_extra_info("ssl_object") is not None,
            "user": session.auth_data,
        }
        with self._path.open("a") as kept:
            kept.write(json.dumps(mail) + "\n")
        return "250 taken"


def main(directory: Path) -> None:
    """Serve until the process is ended."""
    from aiosmtpd.smtp import SMTP, AuthResult

    def judge(_server: Any, _session: Any, _envelope: Any, _mechanism: str, shown: Any) -> Any:
        is_right = (shown.login, shown.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=is_right, handled=is_right, auth_data=USER)

    def context(name: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(directory / f"{name}.pem")
        return made

    signing_in: dict[str, Any] = {"authenticator": judge, "auth_required": True}
    upgrading = signing_in | {"require_starttls": True}
    served: dict[str, tuple[dict[str, Any], ssl.SSLContext | None]] = {
        "starttls": (upgrading | {"tls_context": context("server")}, None),
        "tls": (signing_in | {"auth_require_tls": False}, context("server")),
        "none": ({}, None),
        "stranger": (upgrading | {"tls_context": context("stranger")}, None),
    }

    async def greet_badly(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"554 no service\r\n")
        await writer.drain()
        writer.close()

    async def serve() -> None:
        ports = {}
        loop = asyncio.get_running_loop()
        for name, (facts, at_once) in served.items():

            def make(facts: dict[str, Any] = facts) -> SMTP:
                return SMTP(Clerk(directory), hostname="mail.example", **facts)

            server = await loop.create_server(make, "127.0.0.1", 0, ssl=at_once)
            ports[name] = server.sockets[0].getsockname()[1]
        grudging = await asyncio.start_server(greet_badly, "127.0.0.1", 0)
        ports["grudging"] = grudging.sockets[0].getsockname()[1]
        (directory / "ports").write_text(json.dumps(ports))
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
