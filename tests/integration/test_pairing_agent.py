"""Our agent pairs: with ours, with older dispatchers, and with nobody who is in between."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import ssl
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from ctrl_exec.common.certificate import parse_certificate
from ctrl_exec.common.pairing_code import pairing_code
from ctrl_exec.operations.pairing import Approval, make_token
from tests.support import processes
from tests.support.legacy import LegacyDeployment
from tests.support.pairing import Instance, ListenerProcess, RawAgent, RawClient, listening
from tests.support.pki import TestCA
from tests.support.polling import eventually
from tests.support.processes import children_of
from tests.support.tls_server import Visitor, scripted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class AgentHome:
    """An agent's configuration below a directory, and `request-pairing` as a process."""

    def __init__(self, home: Path, name: str = "web-01") -> None:
        self.home = home
        home.mkdir()
        self.conf = home / "agent.conf"
        self.conf.write_text(
            f"hostname = {name}\netc_dir = {home}/etc\nstate_dir = {home}/state\nport = 7743\n"
            "\n[tags]\nenv = test\n"
        )
        self.process: subprocess.Popen[str] | None = None

    def pair(self, port: int, *words: object) -> AgentHome:
        """Start `request-pairing`."""
        argv = processes.command(
            "ctrl-exec-agent", "--config", self.conf, "request-pairing", "--dispatcher", "127.0.0.1",
            "--port", port, *words,
        )  # fmt: skip
        with (self.home / "said").open("w") as said:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True,
                env=processes.environment(),
            )  # fmt: skip
        return self

    def said(self) -> str:
        """What it told its user so far."""
        return (self.home / "said").read_text()

    def code(self) -> str:
        """The code it shows, once it does."""
        found = eventually(lambda: re.search(r"pairing code: (\d{6})", self.said()))
        return found[1]

    def end(self) -> tuple[int, str]:
        """(exit code, what it said) at its end."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output + self.said()

    def files(self) -> set[str]:
        """The names below etc and state."""
        found = (self.home / part for part in ("etc", "state"))
        return {each.name for part in found if part.is_dir() for each in part.iterdir()}


PAIRED = {"agent.key", "agent.crt", "ca.crt", "ctrl-exec-dispatchers", "ctrl-exec-dispatchers.lock"}


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path / "d")


@pytest.fixture
def listener(instance: Instance) -> Iterator[ListenerProcess]:
    with listening(instance) as process:
        yield process


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentHome]:
    home = AgentHome(tmp_path / "a")
    with pytest.MonkeyPatch.context():
        yield home
    if home.process is not None:
        if home.process.poll() is None:
            home.process.kill()
        home.process.communicate()


def shown_code(instance: Instance) -> str:
    """The code the dispatcher shows for the one waiting request."""
    signer = instance.signer()
    return eventually(lambda: [each.code for each in signer.requests()])[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# With ours


def test_both_sides_show_the_same_code_and_the_agent_is_paired(
    instance: Instance, listener: ListenerProcess, agent: AgentHome
) -> None:
    """Key, certificate, CA and trust map are stored with their modes; the record has the agent's port."""
    agent.pair(listener.port)
    assert agent.code() == shown_code(instance)
    assert agent.files() == {"agent.key.pairing"}
    record = instance.signer().approve("web-01", Approval())
    code, said = agent.end()
    assert code == 0, said
    assert "paired with main" in said
    assert agent.files() == PAIRED
    for name in ("agent.key", "agent.crt", "ca.crt"):
        assert mode(agent.home / "etc" / name) == 0o640
    assert mode(agent.home / "state/ctrl-exec-dispatchers") == 0o644
    trust = (agent.home / "state/ctrl-exec-dispatchers").read_text()
    assert trust == f"{record.dispatcher_serial} main\n"
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        agent.home / "etc/agent.crt", agent.home / "etc/agent.key"
    )
    leaf = parse_certificate(ssl.PEM_cert_to_DER_cert((agent.home / "etc/agent.crt").read_text()))
    assert (leaf.serial, leaf.fingerprint) == (record.serial, record.fingerprint)
    assert record.port == 7743
    assert (agent.home / "etc/ca.crt").read_text() == (instance.home / "etc/ca.crt").read_text()
    assert "allow_bare_serial" not in agent.conf.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_as_root_files_follow_their_directory(
    instance: Instance, listener: ListenerProcess, agent: AgentHome
) -> None:
    """Keys belong to root and the group of etc_dir; the trust map to whom state_dir belongs."""
    for part, uid in (("etc", 0), ("state", 65534)):
        (agent.home / part).mkdir(mode=0o750)
        os.chown(agent.home / part, uid, 65534)
    agent.pair(listener.port)
    shown_code(instance)
    instance.signer().approve("web-01", Approval())
    assert agent.end()[0] == 0
    for name in ("agent.key", "agent.crt", "ca.crt"):
        about = (agent.home / "etc" / name).stat()
        assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (0, 65534, 0o640)
    about = (agent.home / "state/ctrl-exec-dispatchers").stat()
    assert (about.st_uid, about.st_gid) == (65534, 65534)


def test_a_denial_is_told_and_leaves_nothing(
    instance: Instance, listener: ListenerProcess, agent: AgentHome
) -> None:
    """Exit 1, the reason in words, and no key left behind."""
    agent.pair(listener.port)
    shown_code(instance)
    instance.signer().deny("web-01", "wrong rack")
    code, said = agent.end()
    assert code == 1
    assert "wrong rack" in said
    assert agent.files() == set()


def test_the_decision_reaches_an_agent_whose_connection_broke(
    instance: Instance, listener: ListenerProcess, agent: AgentHome
) -> None:
    """Cut off while a person decides, it comes back with the same key and is answered."""
    agent.pair(listener.port)
    agent.code()
    shown_code(instance)
    (child,) = children_of(listener.process.pid)
    os.kill(child, signal.SIGKILL)
    instance.signer().approve("web-01", Approval())
    code, said = agent.end()
    assert code == 0, said
    assert "trying again" in said
    assert agent.files() == PAIRED


def test_pairing_again_replaces_key_and_certificate(
    instance: Instance, listener: ListenerProcess, agent: AgentHome
) -> None:
    """A second pairing with the same CA keeps the trust map and has a new key."""
    keys = []
    for replacing in (False, True):
        agent.pair(listener.port)
        shown_code(instance)
        instance.signer().approve("web-01", Approval(is_replacing=replacing))
        assert agent.end()[0] == 0
        keys.append((agent.home / "etc/agent.key").read_bytes())
    assert keys[0] != keys[1]
    assert (agent.home / "state/ctrl-exec-dispatchers").read_text().count("main") == 1


def test_nobody_there_is_said_plainly(agent: AgentHome) -> None:
    """A closed port is an error with the address, exit 1."""
    agent.pair(1)
    code, said = agent.end()
    assert code == 1
    assert "cannot reach 127.0.0.1 port 1" in said


# With the CA's fingerprint, and tokens


def test_the_right_fingerprint_pairs_and_a_wrong_one_sends_nothing(
    instance: Instance, listener: ListenerProcess, agent: AgentHome
) -> None:
    """Colons and capitals are fine; another CA's fingerprint ends before a request is made."""
    digits = instance.ca_fingerprint.upper()
    typed = ":".join(digits[at : at + 2] for at in range(0, 64, 2))
    agent.pair(listener.port, "--ca-fingerprint", typed)
    assert agent.code() == shown_code(instance)
    instance.signer().approve("web-01", Approval())
    assert agent.end()[0] == 0
    agent.pair(listener.port, "--ca-fingerprint", "00" * 32)
    code, said = agent.end()
    assert code == 1
    assert "nothing was sent" in said
    assert instance.signer().requests() == ()


def test_a_token_pairs_without_a_person_and_once(
    instance: Instance, agent: AgentHome, tmp_path: Path
) -> None:
    """With a running signer the token approves its own name; a second use and another name are denied."""
    token = tmp_path / "token"
    token.write_text(instance.run("pairing-token", "--name", "web-01").stdout)
    other = AgentHome(tmp_path / "b", "web-02")
    with instance.pairing_mode() as pairing:
        port = pairing.port()
        code, said = other.pair(port, "--token-file", token).end()
        assert code == 1
        assert "not valid for this name" in said
        code, said = agent.pair(port, "--token-file", token).end()
        assert code == 0, said
        assert agent.files() == PAIRED
        instance.signer().registry.remove("web-01")
        code, said = agent.pair(port, "--token", token.read_text().strip()).end()
        assert code == 1
        assert "not valid" in said
    log = (instance.home / "pairing.log").read_text()
    assert "ACTION=pair-approve AGENT=web-01 BY=token" in log
    assert token.read_text().strip().partition(".")[2] not in log


def test_a_token_never_replaces_a_name(instance: Instance, agent: AgentHome, tmp_path: Path) -> None:
    """For a registered name it is refused, and stays good for when the name is free."""
    token = make_token(instance.config, "web-01", 3600)
    (tmp_path / "token").write_text(token)
    with instance.pairing_mode() as pairing:
        port = pairing.port()
        client = RawClient(port)
        raw = RawAgent()
        client.post(raw.request())
        client.document()
        client.reveal(raw.reveal)
        shown_code(instance)
        instance.signer().approve("web-01", Approval())
        client.close()
        code, said = agent.pair(port, "--token-file", tmp_path / "token").end()
        assert code == 1
        assert "never replaces" in said
        instance.signer().registry.remove("web-01")
        assert agent.pair(port, "--token-file", tmp_path / "token").end()[0] == 0


def test_an_expired_token_is_refused(instance: Instance, agent: AgentHome, tmp_path: Path) -> None:
    """A token past its time pairs nobody."""
    token = make_token(instance.config, "web-01", 1)
    (tmp_path / "token").write_text(token)
    (stored,) = (instance.home / "state/signer/tokens").iterdir()
    document = json.loads(stored.read_text())
    stored.write_text(json.dumps(document | {"expires": document["expires"] - 60}))
    with instance.pairing_mode() as pairing:
        code, said = agent.pair(pairing.port(), "--token-file", tmp_path / "token").end()
    assert code == 1
    assert "not valid" in said


def test_a_token_in_a_legacy_request_is_an_invalid_request(
    instance: Instance, listener: ListenerProcess, agent: AgentHome
) -> None:
    """The port refuses it, and our agent does not send it."""
    token = make_token(instance.config, "web-01", 3600)
    with RawClient(listener.port) as client:
        client.post(RawAgent().legacy_request(token=token))
        answer = client.document()
    assert (answer["status"], answer["reason"]) == ("error", "invalid request")
    code, said = agent.pair(listener.port, "--legacy", "--token", token).end()
    assert code == 2
    assert "--legacy" in said


@pytest.mark.parametrize("role", ["stranger", "stranger with the real CA in its chain", "agent of the CA"])
@pytest.mark.parametrize("secret", ["token", "fingerprint"])
def test_nothing_is_ever_sent_to_a_false_server(
    instance: Instance, agent: AgentHome, tmp_path: Path, role: str, secret: str
) -> None:
    """Neither token nor CSR: the server's chain and role are checked before the first byte."""
    if role == "agent of the CA":
        pem = _certificate_of_an_agent(instance, tmp_path)
    else:
        pem = TestCA(tmp_path / "evil").dispatcher().pem
    chain = None if role == "stranger" else instance.home / "etc/ca.crt"
    token = make_token(instance.config, "web-01", 3600)
    words = ("--token", token) if secret == "token" else ("--ca-fingerprint", instance.ca_fingerprint)
    with scripted(pem, lambda visitor: visitor.wait_for_end(), chain) as server:
        code, said = agent.pair(server.port, *words).end()
    assert code == 1
    assert "nothing was sent to it" in said
    assert bytes(server.received) == b""
    assert agent.files() == set()


def _certificate_of_an_agent(instance: Instance, tmp_path: Path) -> Path:
    """A certificate that our own CA gave to some agent, with its key."""
    from datetime import UTC, datetime

    from ctrl_exec.ca.authority import load_authority, new_key_pem, spki_of_key

    config = instance.config
    key = new_key_pem()
    authority = load_authority(config.ca_key_path, config.ca_cert_path)
    leaf = authority.issue_agent(spki_of_key(key), "db-01", days=1, now=datetime.now(UTC))
    pem = tmp_path / "agent.pem"
    pem.write_bytes(key + leaf.pem.encode())
    return pem


@pytest.mark.parametrize(
    ("words", "said_words"),
    [
        (("--ca-fingerprint", "ab:cd"), "64 hex digits"),
        (("--token", "ctpair_secretsecretsecretsecret"), "no pairing token"),
        (("--token-file", "/nonexistent"), "no such file"),
        (
            ("--token", f"ctpair_{'ab' * 32}.{'S' * 43}", "--ca-fingerprint", "cd" * 32),
            "not that of the token",
        ),
        (("--port", "0"), "1 to 65535"),
    ],
)
def test_a_wrong_option_is_exit_2_and_never_repeats_a_secret(
    agent: AgentHome, words: tuple[str, ...], said_words: str
) -> None:
    """Said before anything is made or sent."""
    code, said = agent.pair(1, *words).end()
    assert code == 2
    assert said_words in said
    assert "secretsecret" not in said
    assert "SSSS" not in said
    assert agent.files() == set()


def test_a_silent_dispatcher_is_given_up(agent: AgentHome, tmp_path: Path) -> None:
    """A server that takes the request and says nothing costs no more than the time given."""
    with scripted(TestCA(tmp_path / "ca").dispatcher().pem, lambda visitor: visitor.wait_for_end()) as server:
        code, said = agent.pair(server.port, "--timeout", 2).end()
    assert code == 1
    assert "silent" in said
    assert agent.files() == set()


# A relay in the middle


class Relay:
    """Speaks with the agent under its own certificate and with the dispatcher as if it were an agent."""

    def __init__(self, listener: ListenerProcess, tmp_path: Path) -> None:
        self.listener = listener
        self.ca = TestCA(tmp_path / "relay")
        self.pem = self.ca.dispatcher("main").pem
        self.server_der = ssl.PEM_cert_to_DER_cert(self.pem.read_text().partition("-----BEGIN CERT")[1] +
                                                   self.pem.read_text().partition("-----BEGIN CERT")[2])  # fmt: skip
        self.raw = RawAgent()
        self.dispatcher_code = ""
        self.agent_revealed = b""
        self.agent_random = ""
        self.request: Any = None

    def open_dispatcher(self) -> tuple[RawClient, Any]:
        """A request of the relay's own at the dispatcher, revealed, so that its code is on show."""
        client = RawClient(self.listener.port)
        client.post(self.raw.request())
        pending = client.document()
        client.reveal(self.raw.reveal)
        ca_der = ssl.PEM_cert_to_DER_cert(pending["ca"])
        self.dispatcher_code = self.raw.code(ca_der, client.server_der, pending["r_d"])
        return client, pending


def test_behind_a_relay_the_codes_differ(
    instance: Instance, listener: ListenerProcess, agent: AgentHome, tmp_path: Path
) -> None:
    """Even one that hands every message on unchanged shows another server certificate."""
    relay = Relay(listener, tmp_path)

    def script(visitor: Visitor) -> None:
        _, request = visitor.request()
        upstream = RawClient(listener.port)
        upstream.post(request)
        visitor.answer(upstream.document())
        upstream.reveal(bytes.fromhex(visitor.line()["reveal"]))
        visitor.wait_for_end()
        upstream.close()

    with scripted(relay.pem, script) as server:
        agent.pair(server.port)
        ours, theirs = agent.code(), shown_code(instance)
        agent.process.kill()  # type: ignore[union-attr]
    assert ours != theirs


def test_a_relay_that_searches_many_cas_finds_a_match_too_late(
    instance: Instance, listener: ListenerProcess, agent: AgentHome, tmp_path: Path
) -> None:
    """It knows all it needs only after the reveal; the CA it then finds is not the one it announced.

    The search itself succeeds (20 bits are few), which is why both sides commit first: the agent
    never shows the searched code, and refuses the approval.
    """
    relay = Relay(listener, tmp_path)
    found: dict[str, object] = {}

    def script(visitor: Visitor) -> None:
        _, request = visitor.request()
        upstream, pending = relay.open_dispatcher()
        announced = relay.ca.path.read_text()
        visitor.answer({"status": "pending", "reqid": "0" * 16, "protocol": 2,
                        "ca": announced, "r_d": pending["r_d"]})  # fmt: skip
        revealed = bytes.fromhex(visitor.line()["reveal"])
        csr_der = ssl.PEM_cert_to_DER_cert(request["csr"].replace(" REQUEST", ""))
        tail = relay.server_der + revealed + bytes.fromhex(pending["r_d"])
        ca_der = search_ca(csr_der, ssl.PEM_cert_to_DER_cert(announced), tail, relay.dispatcher_code)
        found["code"] = pairing_code(
            csr_der, ca_der, relay.server_der,
            agent_random=revealed, server_random=bytes.fromhex(pending["r_d"]),
        )  # fmt: skip
        leaf = relay.ca.issue("web-01").crt.read_text()
        visitor.answer({"status": "approved", "cert": leaf, "ca": ssl.DER_cert_to_PEM_cert(ca_der),
                        "nonce": request["nonce"], "dispatcher_serial": "abcdef", "dispatcher_id": "main"})  # fmt: skip
        visitor.wait_for_end()
        upstream.close()

    with scripted(relay.pem, script) as server:
        agent.pair(server.port)
        code, said = agent.end()
    assert found["code"] == relay.dispatcher_code
    assert agent.code() != relay.dispatcher_code
    assert code == 1
    assert "CA is not the one announced" in said
    assert agent.files() == set()


def search_ca(csr_der: bytes, ca_der: bytes, tail: bytes, wanted: str) -> bytes:
    """Some bytes to pass for a CA that give the wanted code with this reveal."""
    prefix = hashlib.sha256(csr_der + ca_der)
    target = int(wanted)
    deadline = time.monotonic() + 240
    number = 0
    while time.monotonic() < deadline:
        for _ in range(100_000):
            number += 1
            noise = number.to_bytes(8, "big")
            attempt = prefix.copy()
            attempt.update(noise + tail)
            if int.from_bytes(attempt.digest()[:4], "big") % 1_000_000 == target:
                return ca_der + noise
    raise AssertionError("no match found")


def test_a_relay_can_not_choose_its_random_after_the_dispatchers(
    listener: ListenerProcess, agent: AgentHome, tmp_path: Path
) -> None:
    """On the other side the relay is the one that committed: another reveal is refused there."""
    relay = Relay(listener, tmp_path)
    with RawClient(listener.port) as client:
        client.post(relay.raw.request())
        client.document()
        client.reveal(os.urandom(32))
        assert client.document()["status"] == "error"


def test_a_relay_that_strips_the_protocol_is_refused_by_our_agent(
    instance: Instance, listener: ListenerProcess, agent: AgentHome, tmp_path: Path
) -> None:
    """Made to look legacy on both sides, the agent stops before it shows any code."""
    relay = Relay(listener, tmp_path)

    def script(visitor: Visitor) -> None:
        _, request = visitor.request()
        kept = {key: request[key] for key in ("hostname", "csr", "nonce")}
        upstream = RawClient(listener.port)
        upstream.post(kept)
        visitor.answer(upstream.document())
        visitor.wait_for_end()
        upstream.close()

    with scripted(relay.pem, script) as server:
        agent.pair(server.port)
        code, said = agent.end()
    assert code == 1
    assert "--legacy" in said
    assert "pairing code" not in said
    assert agent.files() == set()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nonce": "0" * 32}, "another request"),
        ({"cert": "junk"}, "PEM certificate"),
        ({"ca": None}, "ca: required"),
        ({"dispatcher_serial": "../x"}, "serial"),
        ({"dispatcher_id": "a b"}, "dispatcher id"),
        ({"status": "maybe"}, "neither yes nor no"),
        ({"cert": "another key"}, "another key"),
        ({"cert": "another ca"}, "another key|does not chain"),
        ({"cert": "for clients"}, "serverAuth"),
    ],
)
def test_an_approval_that_does_not_fit_is_refused(
    agent: AgentHome, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """Nonce, CA, key, role and chain are checked before anything is stored."""
    ca, other = TestCA(tmp_path / "ca"), TestCA(tmp_path / "other")

    def script(visitor: Visitor) -> None:
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        _, request = visitor.request()
        visitor.answer({"status": "pending", "reqid": "0" * 16, "protocol": 2, "ca": ca.path.read_text(),
                        "r_d": "ab" * 32})  # fmt: skip
        visitor.line()
        key: Any = _PublicOnly(x509.load_pem_x509_csr(request["csr"].encode()).public_key())
        made = {
            "another key": ca.issue("web-01").crt.read_text,
            "another ca": other.issue("web-01").crt.read_text,
            "for clients": lambda: _pem_for(ca, key, (ExtendedKeyUsageOID.CLIENT_AUTH,)),
        }
        answer = {"status": "approved", "cert": _pem_for(ca, key, (ExtendedKeyUsageOID.SERVER_AUTH,)),
                  "ca": ca.path.read_text(), "nonce": request["nonce"], "dispatcher_serial": "abc",
                  "dispatcher_id": "main"}  # fmt: skip
        answer |= {name: made[text]() if text in made else text for name, text in change.items()}
        visitor.answer(answer)
        visitor.wait_for_end()

    with scripted(ca.dispatcher().pem, script) as server:
        code, said = agent.pair(server.port).end()
    assert code == 1
    assert re.search(words, said), said
    assert agent.files() == set()


class _PublicOnly:
    """Stands in for a key where only its public half is asked for."""

    def __init__(self, public: object) -> None:
        self._public = public

    def public_key(self) -> object:
        return self._public


def _pem_for(ca: TestCA, key: Any, usages: tuple[Any, ...]) -> str:
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        .sign(ca.key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.0 500 Oops\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\njunk",
        b"HTTP/1.0 200 OK\r\nContent-Length: 999999999\r\n\r\n", b"HTTP/1.0 200 OK\r\n" + b"x: y\r\n" * 5000,
        b"", b'HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}', b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    ],
)  # fmt: skip
def test_a_dispatcher_that_answers_nonsense_ends_in_one_clear_line(
    agent: AgentHome, tmp_path: Path, first: bytes
) -> None:
    """No traceback, exit 1, nothing stored."""

    def script(visitor: Visitor) -> None:
        visitor.request()
        visitor.socket.sendall(first)
        visitor.socket.unwrap()

    with scripted(TestCA(tmp_path / "ca").dispatcher().pem, script) as server:
        code, said = agent.pair(server.port, "--timeout", 20).end()
    assert code == 1, said
    assert said.startswith("ctrl-exec-agent: ")
    assert "Traceback" not in said
    assert agent.files() == set()


# An older dispatcher


def test_our_agent_pairs_with_an_older_dispatcher(agent: AgentHome, tmp_path: Path) -> None:
    """HTTP/1.0, RSA keys, certificates of version 1, `--legacy`: paired by serial, warned about the code."""
    legacy = LegacyDeployment(tmp_path / "legacy", bits=2048)
    pem = tmp_path / "server.pem"
    pem.write_bytes(legacy.dispatcher_key.read_bytes() + legacy.dispatcher_crt.read_bytes())
    recorded = b"HTTP/1.0 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nServer: pairing\r\nContent-Type: application/json\r\n"
    seen: dict[str, Any] = {}

    def script(visitor: Visitor) -> None:
        seen["head"], seen["request"] = visitor.request()
        visitor.answer({"status": "pending", "reqid": "a1b2c3d4"}, recorded)
        csr, crt = tmp_path / "agent.csr", tmp_path / "agent.crt"
        csr.write_text(seen["request"]["csr"])
        legacy.sign(csr, crt, 17)
        visitor.answer({"status": "approved", "cert": crt.read_text(), "ca": legacy.ca_crt.read_text(),
                        "nonce": seen["request"]["nonce"], "dispatcher_serial": "04",
                        "dispatcher_id": "old-main"}, recorded)  # fmt: skip
        visitor.wait_for_end()

    with scripted(pem, script) as server:
        code, said = agent.pair(server.port, "--legacy").end()
    assert code == 0, said
    assert b"POST /pair HTTP/1.0\r\n" in seen["head"] + b"\r\n"
    assert set(seen["request"]) == {"hostname", "csr", "nonce", "port"}
    assert re.fullmatch(r"[0-9a-f]{32}", seen["request"]["nonce"])
    digest = hashlib.sha256(seen["request"]["csr"].encode()).digest()[:4]
    assert agent.code() == f"{int.from_bytes(digest, 'big') % 10**6:06d}"
    assert "does not protect against a relay" in said
    assert (agent.home / "state/ctrl-exec-dispatchers").read_text() == "4 old-main\n"
    settings, _, tags = agent.conf.read_text().partition("[tags]")
    assert "allow_bare_serial = yes" in settings
    assert "allow_bare_serial" not in tags
    check = processes.run("ctrl-exec-agent", "--config", agent.conf, "paired")
    assert check.returncode == 0, check.stderr
    without_flag = AgentHome(tmp_path / "b")
    with scripted(pem, script) as server:
        code, said = without_flag.pair(server.port).end()
    assert code == 1
    assert "--legacy" in said
