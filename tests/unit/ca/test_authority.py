"""What our CA issues, as OpenSSL and an independent library see it."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from ctrl_exec.ca.authority import (
    CertificateAuthority,
    create_authority,
    load_authority,
    new_key_pem,
    new_serial,
    spki_of_key,
)
from ctrl_exec.common.certificate import CLIENT_AUTH, SERVER_AUTH, parse_certificate
from ctrl_exec.common.errors import CertificateError
from tests.support.legacy import LegacyDeployment

if TYPE_CHECKING:
    from pathlib import Path

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    key, certificate = create_authority(NOW)
    (tmp_path / "ca.key").write_bytes(key)
    (tmp_path / "ca.crt").write_bytes(certificate)
    return load_authority(str(tmp_path / "ca.key"), str(tmp_path / "ca.crt"))


def openssl(*words: str, stdin: str = "") -> str:
    done = subprocess.run(["openssl", *words], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def spki() -> bytes:
    return spki_of_key(new_key_pem())


def test_the_ca_is_p256_for_ten_years_and_signs_leaves_only(authority: CertificateAuthority) -> None:
    """P-256, ten years, CA:TRUE with pathlen 0 and key usage, both critical."""
    found = x509.load_pem_x509_certificate(authority.pem.encode())
    assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
    assert found.public_key().curve.name == "secp256r1"
    assert found.not_valid_after_utc - NOW.replace(microsecond=0) == dt.timedelta(days=3650)
    basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = found.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    text = openssl("x509", "-noout", "-text", stdin=authority.pem)
    assert "CA:TRUE, pathlen:0" in text
    assert "Version: 3" in text


def test_two_cas_have_different_names(authority: CertificateAuthority) -> None:
    """A host that knows two of our CAs can tell them apart."""
    other = x509.load_pem_x509_certificate(create_authority(NOW)[1])
    assert other.subject != x509.load_pem_x509_certificate(authority.pem.encode()).subject


def test_an_agents_certificate_is_for_servers_only(authority: CertificateAuthority, tmp_path: Path) -> None:
    """v3, serverAuth and nothing else, the name as SAN, key identifiers; OpenSSL agrees strictly."""
    issued = authority.issue_agent(spki(), "web-01", days=365, now=NOW)
    (tmp_path / "leaf.crt").write_text(issued.pem)
    verify = ("verify", "-x509_strict", "-no-CApath", "-CAfile", str(tmp_path / "ca.crt"))
    assert "OK" in openssl(*verify, "-purpose", "sslserver", str(tmp_path / "leaf.crt"))
    with pytest.raises(
        AssertionError, match=r"unsuitable certificate purpose|unsupported certificate purpose"
    ):
        openssl(*verify, "-purpose", "sslclient", str(tmp_path / "leaf.crt"))
    found = x509.load_pem_x509_certificate(issued.pem.encode())
    usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["web-01"]
    for oid in (ExtensionOID.SUBJECT_KEY_IDENTIFIER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER):
        assert found.extensions.get_extension_for_oid(oid)
    assert found.not_valid_after_utc - NOW.replace(microsecond=0) == dt.timedelta(days=365)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_dispatchers_certificate_has_both_roles_and_its_id(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """clientAuth and serverAuth, the URI, 825 days; both purposes verify."""
    issued = authority.issue_dispatcher(spki(), "Main-1", now=NOW)
    (tmp_path / "leaf.crt").write_text(issued.pem)
    for purpose in ("sslserver", "sslclient"):
        openssl(
            "verify", "-x509_strict", "-no-CApath", "-CAfile", str(tmp_path / "ca.crt"),
            "-purpose", purpose, str(tmp_path / "leaf.crt"),
        )  # fmt: skip
    found = x509.load_pem_x509_certificate(issued.pem.encode())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:ctrl-exec:dispatcher:Main-1"]
    assert found.not_valid_after_utc - NOW.replace(microsecond=0) == dt.timedelta(days=825)


def test_our_own_reader_agrees_with_what_was_issued(authority: CertificateAuthority) -> None:
    """Serial, fingerprint, dates, role and id come out of the stdlib reader as they went in."""
    key = spki()
    issued = authority.issue_dispatcher(key, "main", now=NOW)
    read = parse_certificate(issued.der)
    assert (read.version, read.serial, read.fingerprint) == (3, issued.serial, issued.fingerprint)
    assert read.not_after == issued.not_after
    assert read.dispatcher_id == "main"
    assert read.allows(CLIENT_AUTH)
    assert read.allows(SERVER_AUTH)
    agent = parse_certificate(authority.issue_agent(key, "a", days=1, now=NOW).der)
    assert agent.dispatcher_id is None
    assert not agent.allows(CLIENT_AUTH)


def test_tls_works_between_our_certificates_and_not_with_a_stranger(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Both directions verify with our CA; a certificate of another CA (trustme) is refused."""
    server, client = tmp_path / "server.pem", tmp_path / "client.pem"
    for path, issue in ((server, "agent"), (client, "dispatcher")):
        key = new_key_pem()
        made = (
            authority.issue_agent(spki_of_key(key), "web-01", days=1, now=NOW)
            if issue == "agent"
            else authority.issue_dispatcher(spki_of_key(key), "main", now=NOW)
        )
        path.write_bytes(key + made.pem.encode())
    stranger = trustme.CA()
    stranger_leaf = stranger.issue_cert("main")
    assert handshake(server, client, tmp_path / "ca.crt") == ""
    stranger_leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "stranger.pem"))
    assert "certificate verify failed" in handshake(server, tmp_path / "stranger.pem", tmp_path / "ca.crt")
    stranger.cert_pem.write_to_path(str(tmp_path / "other-ca.crt"))
    assert "certificate verify failed" in handshake(server, client, tmp_path / "other-ca.crt")
    # an agent's certificate is no client's: the role is enforced in the handshake already
    assert "certificate verify failed" in handshake(server, server, tmp_path / "ca.crt")


def handshake(server: Path, client: Path, ca: Path) -> str:
    """A mutual handshake in memory; the first error's text, empty if there is none."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.check_hostname = False
    ours.verify_mode = ssl.CERT_REQUIRED
    for context, pem in ((ours, server), (theirs, client)):
        context.load_cert_chain(pem)
        context.load_verify_locations(ca)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        ours.wrap_bio(to_server, to_client, server_side=True),
        theirs.wrap_bio(to_client, to_server, server_side=False),
    ]
    for _ in range(8):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return str(error)
    return ""


def test_serials_are_random_positive_and_never_look_decimal() -> None:
    """At most 127 bits, always a hex letter, no repetition, beyond any counted serial."""
    serials = [new_serial() for _ in range(20_000)]
    assert len(set(serials)) == len(serials)
    for serial in serials:
        assert 0 < serial < 1 << 127
        assert serial >> 64
        assert set(f"{serial:x}") & set("abcdef")
    assert max(serials).bit_length() == 127


def test_serials_never_repeat_among_processes_that_sign_at_once(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Eight forks of one process, with one and the same state, issue 400 different serials."""
    key = spki()
    pids = []
    for number in range(8):
        pid = os.fork()
        if pid == 0:
            issued = [authority.issue_agent(key, "a", days=1, now=NOW).serial for _ in range(50)]
            (tmp_path / f"serials-{number}").write_text("\n".join(issued))
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
    serials = [line for number in range(8) for line in (tmp_path / f"serials-{number}").read_text().split()]
    assert len(set(serials)) == 400


@pytest.mark.parametrize("name", ["a", "web-01.example.net", "under_score", "x" * 64, "x" * 65, "n" * 253])
def test_names_of_any_length_are_issued_and_verify(
    authority: CertificateAuthority, tmp_path: Path, name: str
) -> None:
    """A name longer than a common name may be stands in the alternative names alone."""
    issued = authority.issue_agent(spki(), name, days=1, now=NOW)
    (tmp_path / "leaf.crt").write_text(issued.pem)
    openssl("verify", "-no-CApath", "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "leaf.crt"))
    read = parse_certificate(issued.der)
    assert read.dns_names == (name,)
    assert read.common_name == (name if len(name) <= 64 else "")


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
def test_leaves_for_other_keys_verify(
    authority: CertificateAuthority, tmp_path: Path, key: rsa.RSAPrivateKey
) -> None:
    """RSA, P-384 and Ed25519 keys of agents are certified by our P-256 CA."""
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    issued = authority.issue_agent(der, "other", days=1, now=NOW)
    (tmp_path / "leaf.crt").write_text(issued.pem)
    openssl("verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "leaf.crt"))


def test_a_server_certificate_is_for_names_and_addresses(authority: CertificateAuthority) -> None:
    """The API's certificate holds every name and address it is reached by."""
    issued = authority.issue_server(spki(), ["ops", "localhost"], ["127.0.0.1", "::1"], days=825, now=NOW)
    text = openssl("x509", "-noout", "-text", stdin=issued.pem)
    for each in ("DNS:ops", "DNS:localhost", "IP Address:127.0.0.1", "IP Address:0:0:0:0:0:0:0:1"):
        assert each in text


def test_no_leaf_outlives_its_ca_and_an_expired_ca_signs_nothing(tmp_path: Path) -> None:
    """The end of a leaf is cut to the CA's."""
    key, certificate = create_authority(NOW - dt.timedelta(days=3600))
    (tmp_path / "ca.key").write_bytes(key)
    (tmp_path / "ca.crt").write_bytes(certificate)
    authority = load_authority(str(tmp_path / "ca.key"), str(tmp_path / "ca.crt"))
    end = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    assert authority.issue_agent(spki(), "a", days=365, now=NOW).not_after == end
    with pytest.raises(CertificateError, match="expired"):
        authority.issue_agent(spki(), "a", days=1, now=end + dt.timedelta(days=1))


def test_a_ca_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    """Missing, foreign, damaged and non-CA files each say which file is wrong."""
    key, certificate = create_authority(NOW)
    (tmp_path / "ca.key").write_bytes(key)
    (tmp_path / "ca.crt").write_bytes(certificate)
    (tmp_path / "other.key").write_bytes(new_key_pem())
    (tmp_path / "junk").write_text("junk")
    authority = load_authority(str(tmp_path / "ca.key"), str(tmp_path / "ca.crt"))
    leaf_key = new_key_pem()
    leaf = authority.issue_agent(spki_of_key(leaf_key), "a", days=1, now=NOW)
    (tmp_path / "leaf.crt").write_text(leaf.pem)
    (tmp_path / "leaf.key").write_bytes(leaf_key)
    for key_name, crt_name, words in (
        ("none.key", "ca.crt", r"none\.key: does not exist"),
        ("ca.key", "none.crt", r"none\.crt: does not exist"),
        ("other.key", "ca.crt", "is not the key of"),
        ("junk", "ca.crt", "no unencrypted PEM key"),
        ("ca.key", "junk", "no PEM certificate"),
        ("leaf.key", "leaf.crt", "is not a CA's certificate"),
    ):
        with pytest.raises(CertificateError, match=words):
            load_authority(str(tmp_path / key_name), str(tmp_path / crt_name))


def test_certificates_of_another_ca_are_told_apart(authority: CertificateAuthority, tmp_path: Path) -> None:
    """`check_issued` accepts ours and refuses what another CA of the same name signed."""
    key, certificate = create_authority(NOW)
    (tmp_path / "b.key").write_bytes(key)
    (tmp_path / "b.crt").write_bytes(certificate)
    other = load_authority(str(tmp_path / "b.key"), str(tmp_path / "b.crt"))
    authority.check_issued(authority.issue_agent(spki(), "a", days=1, now=NOW).der)
    authority.check_issued(authority.issue_agent(spki(), "a", days=1, now=NOW - dt.timedelta(days=90)).der)
    with pytest.raises(CertificateError, match="not issued by this CA"):
        authority.check_issued(other.issue_agent(spki(), "a", days=1, now=NOW).der)


def test_an_adopted_rsa_ca_signs_v3_leaves_that_verify(legacy: LegacyDeployment, tmp_path: Path) -> None:
    """An RSA-4096 CA of an older deployment signs ours; its own v1 leaves still verify beside them."""
    authority = load_authority(str(legacy.ca_key), str(legacy.ca_crt))
    issued = authority.issue_agent(spki(), "web-01", days=365, now=NOW)
    (tmp_path / "leaf.crt").write_text(issued.pem)
    verify = ("verify", "-no-CApath", "-CAfile", str(legacy.ca_crt))
    openssl(*verify, "-purpose", "sslserver", str(tmp_path / "leaf.crt"))
    openssl(*verify, str(legacy.dispatcher_crt))
    assert parse_certificate(issued.der).version == 3
    authority.check_issued(ssl.PEM_cert_to_DER_cert(legacy.dispatcher_crt.read_text()))
    assert parse_certificate(ssl.PEM_cert_to_DER_cert(legacy.dispatcher_crt.read_text())).version == 1
