"""Whom the agent lets in: every wrong certificate is refused, and the log says why."""

from __future__ import annotations

import datetime as dt
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.support.agents import AgentHost, connection_outcome, receive, send
from tests.support.pki import CLIENT, NOW, SERVER, Leaf, TestCA, new_key
from tests.support.polling import eventually

PING = {"reqid": "0123456789abcdef"}


def expect_refused(host: AgentHost, leaf: Leaf | None, outcome: str, logged: str) -> None:
    """The connection ends as said, and the log holds the words."""
    found = connection_outcome(host, leaf)
    assert outcome in found, found
    eventually(lambda: logged in host.log(), what=f"{logged!r} in {host.log()}")


@pytest.fixture
def open_agent(host: AgentHost) -> AgentHost:
    """An agent without rate limits, so that refusals can be repeated."""
    host.configure("rate_limit_disable = yes\n")
    return host.start()


def test_no_certificate(open_agent: AgentHost):
    expect_refused(open_agent, None, "closed", 'REASON="peer did not return a certificate"')


def test_a_certificate_of_another_ca(open_agent: AgentHost, tmp_path: Path):
    stranger = TestCA(tmp_path / "other", name="Test CA").dispatcher("main")
    open_agent.trust(stranger.serial, "main")
    expect_refused(open_agent, stranger, "closed", "ACTION=tls-failure")
    assert "certificate refused" in open_agent.log() or "verif" in open_agent.log()


@pytest.mark.parametrize(
    ("dates", "reason"),
    [({"days": -1, "starts_days": -10}, "certificate has expired"), ({"starts_days": 5}, "not yet valid")],
)
def test_a_certificate_out_of_its_time(
    open_agent: AgentHost, ca: TestCA, dates: dict[str, float], reason: str
):
    leaf = ca.dispatcher("main", **dates)
    open_agent.trust(leaf.serial, "main")
    expect_refused(open_agent, leaf, "closed", reason)


def test_another_agents_certificate(open_agent: AgentHost, ca: TestCA):
    agent = ca.issue("host-b", usages=(SERVER,))
    open_agent.trust(agent.serial, "main")  # not even then
    expect_refused(open_agent, agent, "closed", "purpose")


def test_a_serial_that_is_not_in_the_trust_map(open_agent: AgentHost, ca: TestCA):
    stranger = ca.dispatcher("main")
    expect_refused(
        open_agent, stranger, '403 {"error":"serial mismatch","status":"forbidden"}', "ACTION=serial-reject"
    )
    assert f"SERIAL={stranger.serial}" in open_agent.log()
    assert "not in the trust map" in open_agent.log()


def test_a_revoked_serial_also_on_a_connection_that_is_open(open_agent: AgentHost):
    with open_agent.connect() as connection:
        send(connection, "POST", "/ping", PING)
        assert receive(connection).status == 200
        open_agent.revoke("0x00:" + open_agent.dispatcher.serial.upper())
        send(connection, "POST", "/ping", PING)
        answer = receive(connection)
        assert (answer.status, answer.json()) == (403, {"error": "certificate revoked"})
        assert connection.recv(1) == b""
    expect_refused(open_agent, open_agent.dispatcher, "403", "ACTION=revoked-cert")


def test_a_serial_taken_out_of_the_map_counts_from_the_next_request_on(open_agent: AgentHost):
    with open_agent.connect() as connection:
        send(connection, "POST", "/ping", PING)
        assert receive(connection).status == 200
        (open_agent.state / "ctrl-exec-dispatchers").write_text("")
        send(connection, "POST", "/ping", PING)
        answer = receive(connection)
        assert answer.json() == {"error": "serial mismatch", "status": "forbidden"}
    assert "the trust map is empty" in open_agent.log()


def test_a_missing_map_and_a_broken_revocation_list_trust_nobody(open_agent: AgentHost):
    (open_agent.etc / "revoked-serials").write_text("abc\nnot hex\n")
    expect_refused(open_agent, open_agent.dispatcher, "serial mismatch", "line 2")
    (open_agent.etc / "revoked-serials").unlink()
    assert connection_outcome(open_agent, open_agent.dispatcher) == "ok"
    (open_agent.state / "ctrl-exec-dispatchers").unlink()
    expect_refused(open_agent, open_agent.dispatcher, "serial mismatch", "the trust map is empty")


def test_a_v3_certificate_without_usages_is_an_older_dispatchers_and_its_serial_decides(
    open_agent: AgentHost, ca: TestCA
):
    older = ca.issue("ctrl-exec", usages=())
    assert "serial mismatch" in connection_outcome(open_agent, older)
    open_agent.trust(older.serial, "old")
    assert connection_outcome(open_agent, older) == "ok"


def test_a_v1_certificate_is_trusted_by_its_serial_alone(open_agent: AgentHost, ca: TestCA, tmp_path: Path):
    for serial in ("7", "4096"):
        leaf = issue_v1(ca, tmp_path / serial, serial)
        assert leaf.certificate.version == x509.Version.v1
        assert "serial mismatch" in connection_outcome(open_agent, leaf)
        open_agent.trust(f"{int(serial):X}", f"old-{serial}")
        assert connection_outcome(open_agent, leaf) == "ok"
        assert f"DISPATCHER=old-{serial}" in open_agent.log()


def issue_v1(ca: TestCA, directory: Path, serial: str) -> Leaf:
    """A certificate as `openssl x509 -req` makes them without extensions: version 1, a small serial."""
    directory.mkdir()
    key = new_key(2048)
    key_path, csr_path, crt, pem = (directory / f"v1.{end}" for end in ("key", "csr", "crt", "pem"))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ctrl-exec")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    csr_path.write_bytes(csr.public_bytes(serialization.Encoding.PEM))
    subprocess.run(
        ["openssl", "x509", "-req", "-in", csr_path, "-CA", ca.path, "-CAkey", ca.directory / "ca.key",
         "-set_serial", serial, "-days", "30", "-out", crt],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes(key_path.read_bytes() + crt.read_bytes())
    return Leaf(x509.load_pem_x509_certificate(crt.read_bytes()), key, pem, crt, key_path)


def test_a_certificate_that_runs_out_on_an_open_connection_is_refused(open_agent: AgentHost, ca: TestCA):
    leaf = ca.dispatcher("main", days=3 / 86400 + (dt.datetime.now(dt.UTC) - NOW).total_seconds() / 86400)
    open_agent.trust(leaf.serial, "main")
    with open_agent.connect(leaf) as connection:
        statuses = []

        def refused() -> bool:
            send(connection, "POST", "/ping", PING)
            statuses.append(receive(connection).status)
            return statuses[-1] == 403

        eventually(refused, pause_s=0.2)
    assert statuses[0] == 200
    assert "not valid now" in open_agent.log()


def test_results_belong_to_the_dispatcher_that_ordered_the_run(open_agent: AgentHost, ca: TestCA):
    open_agent.script("hello", "echo secret")
    open_agent.running.process.send_signal(1)  # type: ignore[union-attr]
    eventually(lambda: "ACTION=reload" in open_agent.log())
    other = ca.issue("dispatcher-other", usages=(CLIENT,))
    open_agent.trust(other.serial, "other")
    reqid = "00112233aabbccdd"
    assert open_agent.run("hello", reqid=reqid)["exit"] == 0
    assert open_agent.result(reqid).status == 200
    answer = open_agent.result(reqid, leaf=other)
    assert (answer.status, answer.json()) == (404, {"status": "unknown", "reqid": reqid})


@pytest.mark.parametrize(
    "reqid", ["..%2f..%2fmain%2f0123456789abcdef", "%2e%2e", "x" * 300, "0123456789ABCDEF"]
)
def test_a_request_id_that_is_none_finds_nothing(agent: AgentHost, reqid: str):
    assert agent.ask("GET", f"/result/{reqid}").json()["status"] in ("unknown", "error")


def test_a_resumed_session_is_judged_like_any_other(open_agent: AgentHost):
    import socket
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(open_agent.ca.path)
    context.load_cert_chain(open_agent.dispatcher.pem)

    def ask(session: ssl.SSLSession | None) -> tuple[int, bool, ssl.SSLSession | None]:
        plain = socket.create_connection((open_agent.ip, open_agent.port), timeout=60)
        with context.wrap_socket(plain, session=session) as connection:
            send(connection, "POST", "/ping", PING)
            status = receive(connection).status
            return status, bool(connection.session_reused), connection.session

    status, is_reused, session = ask(None)
    assert (status, is_reused) == (200, False)
    assert ask(session)[:2] == (200, True)
    open_agent.revoke(open_agent.dispatcher.serial)
    assert ask(session)[:2] == (403, True)
