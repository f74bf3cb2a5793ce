"""Reading certificates, compared with the cryptography package; TLS contexts over real sockets."""

from __future__ import annotations

import datetime as dt
import hashlib
import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl_exec.common import certificate, tls
from ctrl_exec.common.errors import CertificateError
from tests.support.pki import TestCA, new_key


def der_of(found: x509.Certificate) -> bytes:
    return found.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("bits", [0, 2048])
def test_fields_agree_with_cryptography(tmp_path: Path, bits: int) -> None:
    leaf = TestCA(tmp_path).dispatcher("site-1", rsa_bits=bits)
    found = certificate.parse_certificate(der_of(leaf.certificate))
    assert found.version == 3
    assert found.serial == leaf.serial
    assert found.fingerprint == leaf.fingerprint
    assert certificate.key_fingerprint(der_of(leaf.certificate)) == leaf.fingerprint
    assert found.not_before == leaf.certificate.not_valid_before_utc
    assert found.not_after == leaf.certificate.not_valid_after_utc
    assert found.common_name == "dispatcher-site-1"
    assert found.dispatcher_id == "site-1"
    assert found.dns_names == ("dispatcher-site-1",)
    assert found.extended_usages == (certificate.CLIENT_AUTH, certificate.SERVER_AUTH)
    assert found.allows(certificate.CLIENT_AUTH)


def test_an_agents_certificate_does_not_allow_to_be_a_client(tmp_path: Path) -> None:
    found = certificate.parse_certificate(der_of(TestCA(tmp_path).issue("web-01").certificate))
    assert not found.allows(certificate.CLIENT_AUTH)
    assert found.dispatcher_id is None


def test_a_certificate_without_usages_allows_all(tmp_path: Path) -> None:
    found = certificate.parse_certificate(der_of(TestCA(tmp_path).issue("web-01", usages=()).certificate))
    assert found.extended_usages is None
    assert found.allows(certificate.CLIENT_AUTH)


def test_dates_after_2049_and_trustmes_certificates_are_read() -> None:
    ca = trustme.CA()
    pem = (
        ca.issue_cert("host.example", not_after=dt.datetime(2060, 1, 1, tzinfo=dt.UTC))
        .cert_chain_pems[0]
        .bytes()
    )
    found = certificate.parse_certificate(certificate.pem_to_der(pem.decode()))
    assert found.not_after == dt.datetime(2060, 1, 1, tzinfo=dt.UTC)
    assert found.dns_names == ("host.example",)


def test_garbage_is_refused_by_name(tmp_path: Path) -> None:
    der = der_of(TestCA(tmp_path).certificate)
    for bad in (b"", b"\x30", der[:50], b"\x00" * 100, b"\x30\x84\xff\xff\xff\xff", der[:-1], b"x" * 70_000):
        with pytest.raises(CertificateError):
            certificate.parse_certificate(bad)
        with pytest.raises(CertificateError):
            certificate.key_fingerprint(bad)
    for text in ("", "no PEM", "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----"):
        with pytest.raises(CertificateError):
            certificate.pem_to_der(text)


CERTIFICATE = trustme.CA().issue_cert("a.example").cert_chain_pems[0].bytes().decode()


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_certificate_never_raises_anything_else(data: st.DataObject) -> None:
    der = bytearray(certificate.pem_to_der(CERTIFICATE))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        key = certificate.key_fingerprint(bytes(der))
        assert certificate.parse_certificate(bytes(der)).fingerprint == key
    except CertificateError:
        pass


def test_fingerprints_and_serials_are_normalised(tmp_path: Path) -> None:
    der = der_of(TestCA(tmp_path).certificate)
    plain = hashlib.sha256(der).hexdigest()
    shown = ":".join(plain[at : at + 2] for at in range(0, 64, 2)).upper()
    assert certificate.ca_fingerprint(der) == plain == certificate.normalise_fingerprint(shown)
    assert certificate.normalise_serial("0x00:0A:ff\n") == "aff"
    assert certificate.normalise_serial("1234") == "1234"
    assert certificate.normalise_serial("00") == "0"
    for bad in ("", "xyz", "12 34", "f" * 65):
        with pytest.raises(CertificateError):
            certificate.normalise_serial(bad)
    with pytest.raises(CertificateError):
        certificate.normalise_fingerprint("ab")


def exchange(server: tls.Context, client: tls.Context) -> tuple[str | None, Exception | None, bytes | None]:
    """(protocol, what the server met, the client's certificate) of one handshake and one byte."""
    ours, theirs = socket.socketpair()
    met: list[Exception] = []
    seen: list[bytes | None] = []

    def serve() -> None:
        try:
            with tls.wrap(server, ours, server_side=True) as connection:
                seen.append(connection.getpeercert(binary_form=True))
                connection.sendall(b"x")
        except (ssl.SSLError, OSError) as error:
            met.append(error)
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    protocol = None
    try:
        with tls.wrap(client, theirs) as connection:
            protocol = connection._tls.version()
            connection.recv(1)
    except (ssl.SSLError, OSError):
        theirs.close()
    thread.join(60)
    return protocol, met[0] if met else None, seen[0] if seen else None


def test_both_sides_prove_themselves(tmp_path: Path) -> None:
    ca = TestCA(tmp_path)
    agent, dispatcher = ca.issue("web-01"), ca.dispatcher()
    server = tls.server_context(
        str(agent.crt), str(agent.key_path), client_ca=str(ca.path), require_client=True
    )
    client = tls.client_context(str(dispatcher.pem), None, ca=str(ca.path))
    protocol, met, seen = exchange(server, client)
    assert protocol == "TLSv1.3"
    assert met is None
    assert seen == der_of(dispatcher.certificate)


@pytest.mark.parametrize("fault", ["none", "stranger", "expired", "early", "server only", "weak"])
def test_a_client_that_may_not_is_refused_with_a_reason(tmp_path: Path, fault: str) -> None:
    ca, other = TestCA(tmp_path / "a"), TestCA(tmp_path / "b")
    agent = ca.issue("web-01")
    clients = {
        "none": lambda: None,
        "stranger": other.dispatcher,
        "expired": lambda: ca.dispatcher(days=-1, starts_days=-5),
        "early": lambda: ca.dispatcher(starts_days=2, days=5),
        "server only": lambda: ca.issue("web-02"),
        "weak": lambda: ca.dispatcher(rsa_bits=1024),
    }
    leaf = clients[fault]()
    server = tls.server_context(
        str(agent.crt), str(agent.key_path), client_ca=str(ca.path), require_client=True
    )
    try:
        client = tls.client_context(str(leaf.pem) if leaf else None, None, ca=str(ca.path))
    except CertificateError:
        assert fault == "weak"
        return
    _, met, seen = exchange(server, client)
    assert seen is None
    assert met is not None
    reason = tls.failure_reason(met)
    assert reason == reason.lower()
    expected = {
        "none": "did not return a certificate", "stranger": "certificate refused", "expired": "certificate has expired",
        "early": "not yet valid", "server only": "purpose", "weak": "too weak",
    }  # fmt: skip
    assert expected[fault] in reason


def test_a_client_without_roots_trusts_any_and_old_protocols_are_refused(tmp_path: Path) -> None:
    ca = TestCA(tmp_path)
    agent = ca.issue("web-01")
    server = tls.server_context(str(agent.crt), str(agent.key_path))
    assert exchange(server, tls.client_context(None, None, ca=None))[0] == "TLSv1.3"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert exchange(server, old)[0] == "TLSv1.2"
    old.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA")
    assert exchange(server, old)[0] is None


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    ca = TestCA(tmp_path)
    agent, other = ca.issue("web-01"), ca.issue("web-02")
    with pytest.raises(CertificateError, match="does not exist"):
        tls.server_context(str(tmp_path / "none"), str(agent.key_path))
    with pytest.raises(CertificateError, match=str(agent.crt)):
        tls.server_context(str(agent.crt), str(other.key_path))
    garbage = tmp_path / "garbage"
    garbage.write_text("no PEM")
    with pytest.raises(CertificateError, match="no usable CA"):
        tls.client_context(None, None, ca=str(garbage))
    with pytest.raises(CertificateError, match="does not exist"):
        tls.client_context(None, None, ca=str(tmp_path / "none"))
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        new_key().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pw"),
        )
    )
    with pytest.raises(CertificateError):
        tls.server_context(str(agent.crt), str(locked))
    assert tls.failure_reason(TimeoutError()) == "TimeoutError"
