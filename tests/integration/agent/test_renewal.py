"""Renewal of the agent's certificate and rotation of the dispatcher's, as the agent does them."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.support.agents import AgentHost, connection_outcome
from tests.support.pki import CLIENT, SERVER, Leaf, TestCA
from tests.support.polling import eventually

REQID = "0123456789abcdef"


def signed(host: AgentHost, csr_pem: str, **options: object) -> Leaf:
    """A certificate for the key of the CSR."""
    csr = x509.load_pem_x509_csr(csr_pem.encode())
    assert csr.is_signature_valid
    return host.ca.issue(host.name, key=host.leaf.key, **options)  # type: ignore[arg-type]


def complete(host: AgentHost, pem: str) -> dict[str, object]:
    found = host.ask("POST", "/renew-complete", {"cert": pem, "ca": "ignored", "reqid": REQID}).json()
    assert isinstance(found, dict)
    return found


def test_a_renewal_from_csr_to_new_connections(agent: AgentHost):
    found = agent.ask("POST", "/renew", {"reqid": REQID}).json()
    assert (found["status"], found["reqid"]) == ("ok", REQID)
    csr = x509.load_pem_x509_csr(found["csr"].encode())
    spki = csr.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert spki == agent.leaf.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    renewed = signed(agent, found["csr"], days=500)
    assert complete(agent, renewed.crt.read_text()) == {"status": "ok", "reqid": REQID, "staged": True}
    der = renewed.certificate.public_bytes(serialization.Encoding.DER)

    def is_in_use() -> bool:
        with agent.connect() as connection:
            return connection.getpeercert(binary_form=True) == der

    eventually(is_in_use)
    assert (agent.etc / "agent.crt").read_text() == renewed.crt.read_text()
    assert agent.ask("POST", "/ping", {"reqid": REQID}).json()["staged"] is False
    assert "ACTION=cert-promote" in agent.log()


def test_where_it_may_not_promote_it_stages_and_root_promotes(host: AgentHost):
    from ctrl_exec_agent import renewal
    from ctrl_exec_agent.config import load_agent_config

    config = load_agent_config(str(host.config))
    renewed = signed(host, renewal.make_csr(config.key_path, host.name))
    renewal.stage(config, renewed.crt.read_text())
    assert oct(Path(config.staging_path).stat().st_mode & 0o777) == "0o640"
    with host.start():
        assert host.ask("POST", "/ping", {"reqid": REQID}).json()["staged"] is True
    assert host.command("cert-staged").returncode == 0
    ended = host.command("promote-cert")
    assert ended.returncode == 0
    assert renewed.serial in ended.stdout
    assert (host.etc / "agent.crt").read_text() == renewed.crt.read_text()
    assert host.command("cert-staged").returncode == 1
    ended = host.command("promote-cert")
    assert (ended.returncode, "no certificate is staged" in ended.stderr) == (1, True)


def test_a_certificate_that_cannot_take_our_place_is_refused(agent: AgentHost, ca: TestCA, tmp_path: Path):
    before = (agent.etc / "agent.crt").read_text()
    key = agent.leaf.key
    wrong = {
        "for another key": ca.issue("host-a").crt.read_text(),
        "does not chain": TestCA(tmp_path / "other").issue("host-a", key=key).crt.read_text(),
        "not valid now": ca.issue("host-a", key=key, days=-1, starts_days=-2).crt.read_text(),
        "serverAuth": ca.issue("host-a", key=key, usages=(CLIENT,)).crt.read_text(),
        "PEM": "no certificate",
    }
    for reason, pem in wrong.items():
        found = complete(agent, pem)
        assert found["status"] == "error"
        assert reason in str(found["error"]), found
    assert (agent.etc / "agent.crt").read_text() == before
    assert not (agent.state / "staged.crt").exists()
    assert agent.ask("POST", "/renew-complete", {"reqid": REQID}).json()["error"] == "cert: required"


def test_a_dispatcher_announces_a_new_serial_and_takes_the_old_one_back(agent: AgentHost, ca: TestCA):
    fresh = ca.dispatcher("main")
    assert "403" in connection_outcome(agent, fresh)
    body = {"serial": fresh.serial.upper(), "action": "add", "cert": fresh.crt.read_text()}
    assert agent.ask("POST", "/rotate-serial", body).json() == {
        "status": "ok", "action": "add", "serial": fresh.serial, "dispatcher": "main",
    }  # fmt: skip
    assert connection_outcome(agent, fresh) == "ok"
    body = {"serial": agent.dispatcher.serial, "action": "remove"}
    own = agent.ask("POST", "/rotate-serial", body).json()
    assert own["status"] == "error"
    assert "lock itself out" in own["error"]
    assert agent.ask("POST", "/rotate-serial", body, leaf=fresh).json()["status"] == "ok"
    assert "403" in connection_outcome(agent, agent.dispatcher)
    assert (agent.state / "ctrl-exec-dispatchers").read_text() == f"{fresh.serial} main\n"
    assert "ACTION=rotate CHANGE=add" in agent.log()


def test_what_may_not_be_announced(agent: AgentHost, ca: TestCA, tmp_path: Path):
    before = (agent.state / "ctrl-exec-dispatchers").read_text()
    fresh, other = ca.dispatcher("main"), ca.dispatcher("other")
    revoked = ca.dispatcher("main")
    agent.revoke(revoked.serial)
    host_b = ca.issue("host-b", usages=(SERVER,))
    foreign = TestCA(tmp_path / "other").dispatcher("main")
    wrong = (
        (fresh.serial, "", "cert: required"),
        (fresh.serial, other.crt.read_text(), "another serial"),
        (other.serial, other.crt.read_text(), "another dispatcher's"),
        (host_b.serial, host_b.crt.read_text(), "clientAuth"),
        (foreign.serial, foreign.crt.read_text(), "does not chain"),
        (revoked.serial, revoked.crt.read_text(), "revoked"),
        ("no hex", fresh.crt.read_text(), "is no serial"),
        (fresh.serial, "no pem", "PEM"),
    )
    for serial, cert, reason in wrong:
        found = agent.ask("POST", "/rotate-serial", {"serial": serial, "action": "add", "cert": cert}).json()
        assert found["status"] == "error"
        assert reason in found["error"], found
    found = agent.ask("POST", "/rotate-serial", {"serial": fresh.serial, "action": "swap"}).json()
    assert "expected add or remove" in found["error"]
    assert (agent.state / "ctrl-exec-dispatchers").read_text() == before


def test_a_dispatcher_acts_for_itself_only(agent: AgentHost, ca: TestCA):
    other = ca.issue("dispatcher-other", usages=(CLIENT,))
    agent.trust(other.serial, "other")
    body = {"serial": agent.dispatcher.serial, "action": "remove", "dispatcher": "main"}
    found = agent.ask("POST", "/rotate-serial", body, leaf=other).json()
    assert found["status"] == "error"
    assert "belongs to another dispatcher" in found["error"]
    assert connection_outcome(agent, agent.dispatcher) == "ok"


def test_a_bare_serial_is_taken_when_the_agent_was_paired_the_older_way(host: AgentHost, ca: TestCA):
    host.configure("allow_bare_serial = yes\n")
    fresh = ca.issue("ctrl-exec", usages=())
    with host.start():
        found = host.ask("POST", "/rotate-serial", {"serial": f"0x{fresh.serial}", "action": "add"}).json()
        assert found["status"] == "ok"
        assert connection_outcome(host, fresh) == "ok"
