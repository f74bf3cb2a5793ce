"""The commands around pairing as an admin types them: setup, pairing mode, decisions, the registry."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ctrl_exec.common.certificate import parse_certificate
from ctrl_exec.operations.pairing import Approval
from tests.support import processes
from tests.support.legacy import LegacyDeployment
from tests.support.pairing import Instance, RawAgent, RawClient, listening, queue_one
from tests.support.polling import eventually
from tests.support.processes import children_of, needs_other_user

if TYPE_CHECKING:
    from collections.abc import Iterator

IS_ROOT = os.geteuid() == 0


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path / "d")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def pair(instance: Instance, name: str = "web-01") -> RawAgent:
    """Register an agent, without a listener of its own around."""
    agent = RawAgent(name)
    with listening(instance) as listener:
        client, _ = queue_one(listener.port, agent)
        signer = instance.signer()
        eventually(signer.requests)
        signer.approve(name, Approval())
        client.document()
        client.close()
    return agent


# Setup


def test_setup_makes_ca_identity_and_directories_with_their_modes(tmp_path: Path) -> None:
    """A new private instance by two commands: everything of core §3 in its place."""
    instance = Instance(tmp_path / "d", is_set_up=False)
    made = instance.json("setup-ca")
    assert made["created"] is True
    identity = instance.json("setup-ctrl-exec")
    assert (identity["origin"], identity["dispatcher_id"]) == ("new", "main")
    etc, state = instance.home / "etc", instance.home / "state"
    assert mode(etc / "ca.key") == 0o600
    assert mode(etc / "ca.crt") == 0o644
    assert mode(etc / f"identity/{identity['serial']}.pem") == 0o600
    assert os.readlink(etc / "dispatcher.crt") == os.readlink(etc / "dispatcher.key") == "identity/current"
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(etc / "dispatcher.crt", etc / "dispatcher.key")
    assert mode(state / "agents") == 0o750
    for folder in ("pairing", "locks", "runs", "runs/done"):
        assert mode(state / folder) == 0o2770
    assert made["fingerprint"] == instance.ca_fingerprint
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", etc / "ca.crt"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.strip().partition("=")[2].replace(":", "").lower() == made["fingerprint"]


def test_setup_again_keeps_what_is_there(instance: Instance) -> None:
    """Neither CA nor identity is ever overwritten."""
    before = {path: path.read_bytes() for path in (instance.home / "etc").rglob("*") if path.is_file()}
    assert instance.json("setup-ca")["created"] is False
    assert instance.json("setup-ctrl-exec")["origin"] == "kept"
    assert before == {
        path: path.read_bytes() for path in (instance.home / "etc").rglob("*") if path.is_file()
    }


def test_half_a_ca_is_refused(tmp_path: Path) -> None:
    """A certificate without its key is never completed with a new one."""
    instance = Instance(tmp_path / "d")
    (instance.home / "etc/ca.key").unlink()
    done = instance.run("setup-ca")
    assert done.returncode == 1
    assert "ca.key does not" in done.stderr
    assert not (instance.home / "etc/ca.key").exists()


def test_setup_without_a_ca_says_what_to_do(tmp_path: Path) -> None:
    """The order of the two commands is in the error."""
    done = Instance(tmp_path / "d", is_set_up=False).run("setup-ctrl-exec")
    assert done.returncode == 1
    assert "setup-ca" in done.stderr


@pytest.mark.parametrize("stem", ["ctrl-exec", "dispatcher"])
@pytest.mark.parametrize("place", ["etc_dir", "ca_dir"])
def test_an_older_deployments_directory_is_adopted_as_it_is(
    older: LegacyDeployment, tmp_path: Path, stem: str, place: str
) -> None:
    """RSA CA and v1 dispatcher certificate stay in use, by the same serial; new agents pair with them."""
    home = tmp_path / "d"
    directory = home / "etc" if place == "etc_dir" else tmp_path / "old"
    directory.mkdir(parents=True)
    for source, target in (("ca.key", "ca.key"), ("ca.crt", "ca.crt"), ("ctrl-exec.crt", f"{stem}.crt"),
                           ("ctrl-exec.key", f"{stem}.key")):  # fmt: skip
        shutil.copy(older.directory / source, directory / target)
    before = {each.name: each.read_bytes() for each in directory.iterdir()}
    instance = Instance(home, f"ca_dir = {directory}\n", is_set_up=False)
    assert instance.json("setup-ca")["created"] is False
    done = instance.json("setup-ctrl-exec")
    assert (done["origin"], done["serial"], done["dispatcher_id"]) == ("adopted", "4", "main")
    for name, content in before.items():
        if directory != home / "etc" or name.startswith("ca."):
            assert (directory / name).read_bytes() == content
    used = parse_certificate(
        ssl.PEM_cert_to_DER_cert((home / "etc/identity/4.pem").read_text().partition("-----BEGIN CERT")[1]
                                 + (home / "etc/identity/4.pem").read_text().partition("-----BEGIN CERT")[2])
    )  # fmt: skip
    assert used.version == 1
    with listening(instance) as listener:
        agent = RawAgent()
        client, _ = queue_one(listener.port, agent)
        signer = instance.signer()
        eventually(signer.requests)
        record = signer.approve("web-01", Approval())
        final = client.document()
        client.close()
    assert final["dispatcher_serial"] == record.dispatcher_serial == "4"
    leaf = tmp_path / "leaf.crt"
    leaf.write_text(final["cert"])
    subprocess.run(
        ["openssl", "verify", "-CAfile", older.ca_crt, "-purpose", "sslserver", leaf],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> LegacyDeployment:
    return LegacyDeployment(tmp_path_factory.mktemp("older"), bits=2048)


def test_cert_and_key_named_in_the_settings_are_used_where_they_are(
    older: LegacyDeployment, tmp_path: Path
) -> None:
    """An admin who points at existing files keeps them: nothing is copied or linked."""
    lines = "".join(
        f"{key} = {path}\n"
        for key, path in (
            ("ca_dir", older.directory),
            ("cert", older.dispatcher_crt),
            ("key", older.dispatcher_key),
        )
    )
    instance = Instance(tmp_path / "d", lines, is_set_up=False)
    done = instance.json("setup-ctrl-exec")
    assert (done["origin"], done["serial"]) == ("kept", "4")
    assert not (instance.home / "etc/identity").exists()


def test_an_identity_of_another_ca_is_not_adopted(older: LegacyDeployment, tmp_path: Path) -> None:
    """A pair that the CA did not sign is named, and nothing is installed."""
    instance = Instance(tmp_path / "d", is_set_up=False)
    instance.json("setup-ca")
    shutil.copy(older.dispatcher_crt, instance.home / "etc/dispatcher.crt")
    shutil.copy(older.dispatcher_key, instance.home / "etc/dispatcher.key")
    done = instance.run("setup-ctrl-exec")
    assert done.returncode == 1
    assert "not issued by this CA" in done.stderr
    assert not (instance.home / "etc/identity").exists()


def test_the_token_hook_lets_the_shown_token_in_and_nobody_else(instance: Instance) -> None:
    """The hook, its first token (stored as a hash), the API's certificate, the settings: all at once."""
    done = instance.json("setup-ctrl-exec", "--with-token-hook")
    etc = instance.home / "etc"
    assert mode(etc / "auth-hook") == 0o755
    assert mode(etc / "auth-tokens") == 0o640
    assert mode(etc / "api.key") == 0o600
    assert mode(etc / "api.crt") == 0o644
    assert done["token"] not in (etc / "auth-tokens").read_text()
    config = instance.config
    assert config.auth_hook == str(etc / "auth-hook")
    assert (config.api_cert, config.api_key) == (str(etc / "api.crt"), str(etc / "api.key"))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.api_cert, config.api_key)
    subprocess.run(
        ["openssl", "verify", "-CAfile", etc / "ca.crt", "-purpose", "sslserver", "-verify_hostname", "localhost",
         etc / "api.crt"], check=True, capture_output=True,
    )  # fmt: skip
    for token, expected in ((done["token"], 0), ("wrong", 2), ("", 1)):
        asked = subprocess.run(
            [etc / "auth-hook"], check=False, stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"]} | {f"ENVEXEC_{name}": "" for name in ("SCRIPT", "HOSTS", "OMITTED",
                 "SUBMITTER", "USERNAME")} | {"ENVEXEC_ACTION": "ping", "ENVEXEC_TOKEN": token},
        )  # fmt: skip
        assert asked.returncode == expected
    again = instance.json("setup-ctrl-exec", "--with-token-hook")
    assert again["token"] is None
    assert again["settings"] == []


def test_another_hook_is_not_replaced(tmp_path: Path) -> None:
    """A hook that is configured, or in the place, stays."""
    instance = Instance(tmp_path / "d")
    (instance.home / "etc/auth-hook").write_text("#!/bin/sh\nexit 0\n")
    done = instance.run("setup-ctrl-exec", "--with-token-hook")
    assert done.returncode == 1
    assert "another hook" in done.stderr
    assert (instance.home / "etc/auth-hook").read_text() == "#!/bin/sh\nexit 0\n"
    assert "auth_hook" not in instance.conf.read_text()


# Pairing mode


def test_the_commands_decide_what_pairing_mode_queued(instance: Instance) -> None:
    """list-requests, approve by id and deny by name, as JSON and as text."""
    with instance.pairing_mode() as pairing:
        port = pairing.port()
        first, pending = queue_one(port, RawAgent("web-01"), ip="192.0.2.1")
        second, _ = queue_one(port, RawAgent("web-02"))
        listed = eventually(lambda: (found := instance.json("list-requests")["requests"])[1:] and found)
        one = next(each for each in listed if each["hostname"] == "web-01")
        assert one["id"] == pending["reqid"]
        assert (one["ip"], one["remote_ip"], one["legacy"]) == ("192.0.2.1", "127.0.0.1", False)
        assert re.fullmatch(r"\d{6}", one["code"])
        assert abs(one["received"] - time.time()) < 60
        table = instance.run("list-requests").stdout
        assert table.split()[:6] == ["HOST", "ID", "CODE", "IP", "RECEIVED", "NOTES"]
        assert one["code"] in table
        done = instance.json(
            "approve", one["id"], "--ip", "127.0.10.1", "--agent-port", "7001", "--lookup-by", "ip",
            "-t", "env=prod", "--tags", "role=web,dc=x1", "--code", one["code"],
        )  # fmt: skip
        assert done["agent"]["ip"] == "127.0.10.1"
        assert done["agent"]["tags"] == {"env": "prod", "role": "web", "dc": "x1"}
        assert instance.run("deny", "web-02", "--reason", "unknown rack").returncode == 0
        assert first.document()["status"] == "approved"
        assert second.document() == {"status": "denied", "reason": "unknown rack"}
        for client in (first, second):
            client.close()
        missing = instance.run("approve", "web-02")
        assert missing.returncode == 1
        assert "list-requests" in missing.stderr
        assert instance.json("deny", "nobody", code=1)["error"] == "not found"
    assert instance.json("list-requests") == {"ok": True, "requests": []}


def test_a_second_pairing_mode_is_refused_and_stop_ends_the_first(instance: Instance) -> None:
    """`start` runs in the background and says where; a second one and a second stop are told."""
    started = instance.json("pairing-mode", "start")
    port = int(started["addresses"][0].rpartition(":")[2])
    client, _ = queue_one(port, RawAgent())
    eventually(lambda: instance.json("list-requests")["requests"])
    for words in (("pairing-mode",), ("pairing-mode", "start")):
        done = instance.run(*words)
        assert done.returncode == 1
        assert "running already" in done.stderr
    assert instance.json("pairing-mode", "stop") == {"ok": True, "stopped": True}
    assert client.document() == {"status": "denied", "reason": "pairing mode ended"}
    client.close()
    with pytest.raises(OSError):
        RawClient(port)
    assert instance.json("pairing-mode", "stop") == {"ok": True, "stopped": False}


def test_a_killed_signer_takes_its_listener_along(instance: Instance) -> None:
    """`kill -9` of the process that can sign closes the port; a new pairing mode starts at once."""
    pairing = instance.pairing_mode()
    port = pairing.port()
    (listener,) = children_of(pairing.pid)
    os.kill(pairing.pid, signal.SIGKILL)
    pairing.process.wait(60)
    eventually(lambda: not Path(f"/proc/{listener}").exists() or "Z" in _state(listener))
    with pytest.raises(OSError):
        RawClient(port)
    with instance.pairing_mode() as again:
        again.port()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_dead_listener_ends_pairing_mode_with_a_message(instance: Instance) -> None:
    """The signer notices and says so, exit 1."""
    with instance.pairing_mode() as pairing:
        pairing.port()
        (listener,) = children_of(pairing.pid)
        os.kill(listener, signal.SIGKILL)
        assert pairing.process.wait(60) == 1
        assert "listener has ended" in pairing.log()


def test_a_taken_port_and_a_missing_identity_are_said(instance: Instance, tmp_path: Path) -> None:
    """Pairing mode that can't listen ends with the reason, exit 1."""
    with listening(instance) as listener:
        instance.conf.write_text(
            instance.conf.read_text().replace("pairing_port = 0", f"pairing_port = {listener.port}")
        )
        done = instance.run("pairing-mode")
    assert done.returncode == 1
    assert f"port {listener.port}" in done.stderr
    bare = Instance(tmp_path / "bare", is_set_up=False)
    done = bare.run("pairing-mode")
    assert done.returncode == 1
    assert "does not exist" in done.stderr


def test_pairing_mode_ends_after_its_timeout(instance: Instance) -> None:
    """`--timeout` closes the port by itself, exit 0; with --json one document at the end."""
    done = instance.run("pairing-mode", "--timeout", "1")
    assert (done.returncode, done.stdout) == (0, "")
    assert instance.json("pairing-mode", "--timeout", "1")["addresses"][0].startswith("127.0.0.1:")


def test_a_new_identity_is_taken_up_without_a_restart(instance: Instance) -> None:
    """When `identity/current` is swapped the port shows the new certificate, and codes still match."""
    from datetime import UTC, datetime

    from ctrl_exec.ca import identity
    from ctrl_exec.ca.authority import load_authority, new_key_pem, spki_of_key

    config = instance.config
    with instance.pairing_mode() as pairing:
        port = pairing.port()
        with RawClient(port) as client:
            before = parse_certificate(client.server_der).serial
        key = new_key_pem()
        authority = load_authority(config.ca_key_path, config.ca_cert_path)
        issued = authority.issue_dispatcher(spki_of_key(key), "main", now=datetime.now(UTC))
        identity.activate(config.identity_dir, identity.store_identity(config.identity_dir, key, issued.pem))

        def new_serial() -> bool:
            with RawClient(port) as client:
                return parse_certificate(client.server_der).serial == issued.serial != before

        eventually(new_serial)
        agent = RawAgent()
        client, pending = queue_one(port, agent)
        shown = eventually(lambda: instance.json("list-requests")["requests"])
        assert shown[0]["code"] == agent.code(instance.ca_der, client.server_der, pending["r_d"])
        client.close()


def test_on_a_terminal_each_request_is_shown_and_asked_about(instance: Instance) -> None:
    """A person types y, n, l and Enter; legacy and taken names need their word, as at the prompt."""
    terminal = Terminal(instance)
    try:
        port = int(terminal.wait_for(r"listens on 127\.0\.0\.1:(\d+)")[1])
        agent = RawAgent("web-01")
        client, pending = queue_one(port, agent)
        code = agent.code(instance.ca_der, client.server_der, pending["r_d"])
        terminal.wait_for(f"web-01 .*code {code}.*approve\\?")
        terminal.type("y")
        terminal.wait_for("approved web-01 until")
        assert client.document()["status"] == "approved"
        client.close()

        client, _ = queue_one(port, RawAgent("web-02"))
        terminal.wait_for(r"web-02 .*approve\?")
        terminal.type("n")
        terminal.wait_for("denied web-02")
        assert client.document()["status"] == "denied"
        client.close()

        client = RawClient(port)
        client.post(RawAgent("web-01").legacy_request())
        client.document()
        terminal.wait_for(r"legacy: no protection.*name is taken.*approve\?")
        terminal.type("y")
        terminal.wait_for(r"not done: .*--legacy.*approve\?")
        terminal.type("y --legacy --replace")
        terminal.wait_for("approved web-01 until")
        assert client.document()["status"] == "approved"
        client.close()

        client, _ = queue_one(port, RawAgent("web-03"))
        terminal.wait_for(r"web-03 .*approve\?")
        terminal.type("")
        terminal.wait_for(r"web-03 .*approve\?")
        client.close()
        terminal.wait_for("went away")

        later, _ = queue_one(port, RawAgent("web-04"))
        terminal.wait_for(r"web-04 .*approve\?")
        terminal.type("l")
        client, _ = queue_one(port, RawAgent("web-05"))
        terminal.wait_for(r"web-05 .*approve\?")
        assert instance.run("approve", "web-05").returncode == 0
        terminal.wait_for("decided elsewhere")
        assert instance.run("approve", "web-04").returncode == 0
        assert later.document()["status"] == client.document()["status"] == "approved"
        for each in (client, later):
            each.close()
        terminal.send(b"\x03")
        assert terminal.process.wait(60) == 0
        for name, times in (("web-02", 1), ("web-03", 2), ("web-04", 1), ("web-05", 1)):
            asked = terminal.shown.count(f"{name} (127.0.0.1, port 7443) asks to be paired")
            assert asked == times, (name, terminal.shown)
        assert "please answer y, n or l" in terminal.shown
        assert "ACTION=" not in terminal.shown  # a log line would stand in the middle of a question
    finally:
        terminal.close()


class Terminal:
    """`ctrl-exec pairing-mode` on a terminal of its own."""

    def __init__(self, instance: Instance) -> None:
        self.fd, theirs = pty.openpty()
        argv = processes.command("ctrl-exec", "--config", instance.conf, "--no-color", "pairing-mode")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *argv], stdin=theirs, stdout=theirs, stderr=theirs,
            env=processes.environment(), start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._seen = ""
        self.shown = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in what was shown since the last one."""
        deadline = time.monotonic() + 60
        while True:
            found = re.search(pattern, self._seen, re.DOTALL)
            if found:
                self._seen = self._seen[found.end() :]
                return found
            assert time.monotonic() < deadline, (pattern, self._seen)
            if select.select([self.fd], [], [], 0.1)[0]:
                piece = os.read(self.fd, 65536).decode("utf-8", "replace")
                self._seen += piece
                self.shown += piece

    def type(self, line: str) -> None:
        """A line, with Enter."""
        self.send(line.encode() + b"\n")

    def send(self, keys: bytes) -> None:
        """These keys."""
        os.write(self.fd, keys)

    def close(self) -> None:
        """Hang up."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)
        os.close(self.fd)


# a new session has no terminal until it asks for one; Ctrl-C must reach the program as SIGINT
_TAKE_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


# The registry's commands


def test_the_registry_is_listed_edited_and_emptied(instance: Instance) -> None:
    """list-agents, edit-agent and unpair, as JSON and as text."""
    assert instance.json("list-agents") == {"ok": True, "agents": []}
    pair(instance)
    (agent,) = instance.json("list-agents")["agents"]
    assert (agent["hostname"], agent["ip"], agent["serial_status"]) == ("web-01", "127.0.0.1", "current")
    assert (agent["revoked"], agent["last_contact"], agent["tags"]) == (False, "", {})
    changed = instance.json(
        "edit-agent", "web-01", "--tags", "env=prod,role=web", "--ip", "192.0.2.9", "--agent-port", "8443",
        "--lookup-by", "ip",
    )["agent"]  # fmt: skip
    assert (changed["ip"], changed["port"], changed["lookup_by"]) == ("192.0.2.9", 8443, "ip")
    changed = instance.json("edit-agent", "web-01", "--untag", "role", "-t", "dc=x1")["agent"]
    assert changed["tags"] == {"dc": "x1", "env": "prod"}
    shown = instance.run("list-agents").stdout
    assert "web-01  192.0.2.9:8443" in shown
    assert "dc=x1,env=prod" in shown
    assert "GMT" not in shown  # the day is enough, and leaves room for the rest on 80 columns
    for words, code in (
        (("edit-agent", "web-01"), 2), (("edit-agent", "web-01", "--tags", "junk"), 2),
        (("edit-agent", "nobody", "--ip", "192.0.2.1"), 1), (("edit-agent", "web-01", "--ip", "junk"), 2),
        (("edit-agent", "../x", "--ip", "192.0.2.1"), 2), (("unpair", "nobody", "web-01"), 1),
    ):  # fmt: skip
        assert instance.run(*words).returncode == code, words
    assert instance.json("unpair", "web-01")["unpaired"] == ["web-01"]
    assert instance.json("list-agents")["agents"] == []


def test_a_revoked_agent_stays_listed_and_its_key_never_pairs_again(instance: Instance) -> None:
    """revoke, unpair --revoke, and what revoked.json then holds."""
    agent = pair(instance)
    done = instance.json("revoke", "web-01", "--reason", "stolen")
    assert done["revoked"][0]["reason"] == "stolen"
    (listed,) = instance.json("list-agents")["agents"]
    assert listed["revoked"] is True
    assert "revoked" in instance.run("list-agents").stdout
    document = json.loads((instance.home / "state/revoked.json").read_text())
    assert document[listed["fingerprint"]]["name"] == "web-01"
    assert mode(instance.home / "state/revoked.json") == 0o640
    pair(instance, "web-02")
    assert instance.json("unpair", "web-02", "--revoke")["revoked"] is True
    assert instance.run("revoke", "nobody").returncode == 1
    with listening(instance) as listener, RawClient(listener.port) as client:
        client.post(agent.request())
        assert client.document()["status"] == "denied"


def test_a_token_is_printed_alone(instance: Instance) -> None:
    """Its value and nothing else on stdout; with --json a document; bad input is exit 2."""
    done = instance.run("pairing-token", "--name", "web-01", "--ttl", "30m")
    assert re.fullmatch(rf"ctpair_{instance.ca_fingerprint}\.[\w-]{{43}}\n", done.stdout)
    document = instance.json("pairing-token", "--name", "WEB-01")
    assert document["name"] == "web-01"
    assert 3500 < document["expires"] - time.time() <= 3600
    for words in (("pairing-token",), ("pairing-token", "--name", "../x"),
                  ("pairing-token", "--name", "a", "--ttl", "1y"), ("pairing-token", "--name", "a", "--ttl", "99d")):  # fmt: skip
        assert instance.run(*words).returncode == 2, words


# Users and files


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A temporary directory that another user may enter, as those of pytest may not be."""
    with tempfile.TemporaryDirectory(prefix="ctrl-exec-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def shared(open_directory: Path) -> Instance:
    """An instance whose service user is `nobody`, set up by root."""
    group = subprocess.run(["id", "-gn", "nobody"], capture_output=True, text=True, check=True).stdout.strip()
    instance = Instance(
        open_directory / "d", f"service_user = nobody\nservice_group = {group}\n", is_set_up=False
    )
    instance.conf.chmod(0o644)
    assert instance.run("setup-ca").returncode == 0
    assert instance.run("setup-ctrl-exec", "--with-token-hook").returncode == 0
    return instance


def about(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root to have a service user")
NOBODY = 65534


@needs_root
def test_what_root_sets_up_has_the_owners_of_the_contract(shared: Instance) -> None:
    """Every line of core §3 that setup makes: mode, owner, group."""
    etc, state = shared.home / "etc", shared.home / "state"
    serial = os.readlink(etc / "identity/current")
    assert about(etc / "ca.key") == (0, 0, 0o600)
    assert about(etc / "ca.crt") == (0, 0, 0o644)
    assert about(etc / "identity" / serial) == (NOBODY, NOBODY, 0o600)
    assert about(etc / "identity") == (0, NOBODY, 0o750)
    assert about(etc / "auth-hook") == (0, 0, 0o755)
    assert about(etc / "auth-tokens") == (0, NOBODY, 0o640)
    assert about(etc / "api.key") == (NOBODY, NOBODY, 0o600)
    assert about(state) == (0, NOBODY, 0o1770)
    assert about(state / "agents") == (0, NOBODY, 0o750)
    for folder in ("pairing", "locks", "runs", "runs/done", "state"):
        assert about(state / folder) == (NOBODY, NOBODY, 0o2770)


@needs_root
@needs_other_user
def test_the_listener_is_the_service_user_and_holds_nothing_of_the_ca(shared: Instance) -> None:
    """All its ids are dropped, no descriptor leads to the CA's directory, and it can't read the key."""
    with shared.pairing_mode() as pairing:
        port = pairing.port()
        (listener,) = children_of(pairing.pid)
        status = Path(f"/proc/{listener}/status").read_text()
        assert re.search(rf"^Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}$", status, re.MULTILINE)
        assert re.search(rf"^Gid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        held = [os.readlink(each) for each in Path(f"/proc/{listener}/fd").iterdir()]
        assert not [path for path in held if path.startswith(str(shared.home / "etc"))]
        sockets = [Path(f"/proc/{pairing.pid}/fd") / each for each in os.listdir(f"/proc/{pairing.pid}/fd")]
        assert not [each for each in sockets if os.readlink(each).startswith("socket:")]
        client, _ = queue_one(port, RawAgent())
        (listed,) = eventually(lambda: shared.json("list-requests")["requests"])
        state = shared.home / "state"
        assert about(state / f"pairing/requests/{listed['id']}.json") == (NOBODY, NOBODY, 0o660)
        assert about(state / "signer") == (0, 0, 0o700)
        assert about(state / f"signer/shown/{listed['id']}.json") == (0, 0, 0o600)
        client.close()


@needs_root
@needs_other_user
def test_signing_commands_hand_their_files_over(shared: Instance) -> None:
    """Records and revocations are root's with the service's group, answers and contacts the service's."""
    with shared.pairing_mode() as pairing:
        client, pending = queue_one(pairing.port(), RawAgent())
        eventually(lambda: shared.json("list-requests")["requests"])
        assert shared.run("approve", "web-01").returncode == 0
        assert client.document()["status"] == "approved"
        client.close()
        state = shared.home / "state"
        assert about(state / "agents/web-01.json") == (0, NOBODY, 0o640)
        assert about(state / f"pairing/answers/{pending['reqid']}.json") == (NOBODY, NOBODY, 0o660)
    assert shared.run("edit-agent", "web-01", "--tags", "a=b").returncode == 0
    assert about(state / "agents/web-01.json") == (0, NOBODY, 0o640)
    assert shared.run("revoke", "web-01").returncode == 0
    assert about(state / "revoked.json") == (0, NOBODY, 0o640)


@needs_root
@needs_other_user
def test_the_service_user_can_look_and_not_decide(shared: Instance) -> None:
    """list-agents works as the service user; approve and revoke fail with a reason, and change nothing."""
    with shared.pairing_mode() as pairing:
        client, _ = queue_one(pairing.port(), RawAgent())
        eventually(lambda: shared.json("list-requests")["requests"])
        assert as_nobody(shared, "list-agents").returncode == 0
        listed = as_nobody(shared, "--json", "list-requests")
        assert json.loads(listed.stdout)["requests"][0]["hostname"] == "web-01"
        for words in (("approve", "web-01"), ("pairing-token", "--name", "a"), ("setup-ca",)):
            done = as_nobody(shared, *words)
            assert done.returncode in (1, 2), done.stdout
            assert "Traceback" not in done.stderr
        assert shared.run("approve", "web-01").returncode == 0
        assert client.document()["status"] == "approved"
        client.close()
    for words in (("revoke", "web-01"), ("unpair", "web-01"), ("edit-agent", "web-01", "--ip", "192.0.2.1")):
        assert as_nobody(shared, *words).returncode == 1
    assert shared.json("list-agents")["agents"][0]["ip"] == "127.0.0.1"


def as_nobody(instance: Instance, *words: object) -> subprocess.CompletedProcess[str]:
    """A command of ctrl-exec run by the service user."""
    return subprocess.run(
        processes.command("ctrl-exec", "--config", instance.conf, *words), user="nobody", group=NOBODY,
        extra_groups=[], env=processes.environment({"HOME": "/"}), capture_output=True, text=True, check=False,
        cwd="/", timeout=60,
    )  # fmt: skip


@needs_root
def test_root_is_not_led_astray_by_the_service_user(shared: Instance) -> None:
    """A signer directory that somebody else made, and folders that are links, are refused."""
    state = shared.home / "state"
    (state / "signer").mkdir(mode=0o700)
    os.chown(state / "signer", NOBODY, NOBODY)
    done = shared.run("pairing-token", "--name", "web-01")
    assert done.returncode == 1
    assert "must be a directory of this user" in done.stderr
    (state / "signer").rmdir()
    target = shared.home / "target"
    target.mkdir()
    shutil.rmtree(state / "pairing/requests", ignore_errors=True)
    (state / "pairing/requests").symlink_to(target)
    (target / "0123456789abcdef.json").write_text("{}")
    assert shared.json("list-requests", code=1)["error"] == "storage"
