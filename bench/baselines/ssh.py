"""An own sshd on loopback with own keys and configuration, and the clients' configuration for it.

Owns the files of both below one directory. Must not touch anybody's ~/.ssh or /etc/ssh.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.daemon import Daemon
from tests.support.polling import eventually


@dataclass
class SshServer:
    """A running sshd, and what a client needs."""

    home: Path
    port: int
    daemon: Daemon

    @property
    def config(self) -> Path:
        """The clients' configuration: cold connections."""
        return self.home / "ssh_config"

    @property
    def key(self) -> Path:
        """The client's private key."""
        return self.home / "client_key"

    def cold(self, host: str, *command: str) -> list[str]:
        """argv of `ssh host command`, each time a new connection."""
        return ["ssh", "-F", str(self.config), host, *command]

    def warm(self, host: str, *command: str) -> list[str]:
        """argv of the same over a ControlMaster, which the first call starts."""
        options = [
            "-o",
            "ControlMaster=auto",
            "-o",
            "ControlPersist=600",
            "-o",
            f"ControlPath={self.home}/cm-%C",
        ]
        return ["ssh", "-F", str(self.config), *options, host, *command]

    def stop(self) -> None:
        """End it and the masters that hang on it: the sessions they hold would outlive sshd."""
        for path in [*self.home.glob("cm-*"), *self.home.glob("cp/*")]:
            argv = ["ssh", "-F", str(self.config), "-o", f"ControlPath={path}", "-O", "exit", "any"]
            subprocess.run(argv, capture_output=True, check=False, timeout=10)
        self.daemon.stop()


def why_not() -> str:
    """Why there can be no sshd here; empty when there can."""
    if shutil.which("ssh") is None:
        return "no ssh"
    if _sshd() is None:
        return "no sshd (Debian: openssh-server)"
    return ""


def start(home: Path) -> SshServer:
    """An sshd on a free port of all loopback addresses."""
    home.mkdir(mode=0o700)
    if os.geteuid() == 0:  # its privilege separation directory is compiled in
        with suppress(OSError):
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host_key", "client_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(home / name)], check=True
        )
    shutil.copy(home / "client_key.pub", home / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (home / "sshd_config").write_text(
        f"ListenAddress 0.0.0.0:{port}\nHostKey {home}/host_key\nAuthorizedKeysFile {home}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nMaxStartups 1000\nMaxSessions 1000\nLogLevel ERROR\n"
        "PrintMotd no\nPrintLastLog no\n"
    )
    (home / "known_hosts").write_text(f"[127.*]:{port} {(home / 'host_key.pub').read_text()}")
    (home / "ssh_config").write_text(
        f"Host *\n  User {getpass.getuser()}\n  Port {port}\n  IdentityFile {home}/client_key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {home}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n  LogLevel ERROR\n  BatchMode yes\n"
    )
    daemon = Daemon([str(_sshd()), "-D", "-e", "-f", str(home / "sshd_config")], home / "sshd.log")
    server = SshServer(home, port, daemon)

    def answers() -> bool:
        return (
            subprocess.run(server.cold("127.0.0.1", "true"), capture_output=True, check=False).returncode == 0
        )

    try:
        eventually(answers, timeout_s=10, pause_s=0.2, what="sshd lets us in")
    except AssertionError:
        daemon.stop()
        raise RuntimeError(f"sshd lets nobody in: {daemon.log()[-500:]}") from None
    return server


def _sshd() -> str | None:
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
