"""Which CSRs are taken: strong keys, SHA-2, signed by themselves, small, and exactly one."""

from __future__ import annotations

import hashlib
import ssl
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl_exec.ca.csr import check_csr
from ctrl_exec.common.errors import CertificateError

EC_KEY = ec.generate_private_key(ec.SECP256R1())


def make(key: object, digest: hashes.HashAlgorithm | None = hashes.SHA256(), name: str = "web-01") -> str:  # noqa: B008
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest)  # type: ignore[arg-type]
    return csr.public_bytes(serialization.Encoding.PEM).decode()


GOOD_DER = ssl.PEM_cert_to_DER_cert(make(EC_KEY).replace(" REQUEST", ""))


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (EC_KEY, hashes.SHA256()),
        (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
        (rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        (rsa.generate_private_key(65537, 3072), hashes.SHA512()),
        (ed25519.Ed25519PrivateKey.generate(), None),
    ],
)
def test_good_keys_are_taken(key: object, digest: hashes.HashAlgorithm | None) -> None:
    """RSA from 2048 bits, P-256, P-384 and Ed25519, with digests of the SHA-2 family."""
    pem = make(key, digest)
    found = check_csr(pem)
    spki = key.public_key().public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    der = ssl.PEM_cert_to_DER_cert(pem.replace(" REQUEST", ""))
    assert found.spki == spki
    assert found.fingerprint == hashlib.sha256(spki).hexdigest()
    assert found.der == der
    assert found.digest == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (rsa.generate_private_key(65537, 1024), hashes.SHA256()),
        (ec.generate_private_key(ec.SECP256K1()), hashes.SHA256()),
        (ec.generate_private_key(ec.SECP521R1()), hashes.SHA256()),
        (ed448.Ed448PrivateKey.generate(), None),
        (dsa.generate_private_key(2048), hashes.SHA256()),
    ],
)
def test_weak_and_odd_keys_are_refused(key: object, digest: hashes.HashAlgorithm | None) -> None:
    """Short RSA, other curves and other kinds of keys are named as the reason."""
    with pytest.raises(CertificateError, match="too weak or of another kind"):
        check_csr(make(key, digest))


def test_sha1_is_refused() -> None:
    """A CSR signed with SHA-1 is refused, by openssl's own making."""
    key = EC_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made = subprocess.run(
        ["openssl", "req", "-new", "-sha1", "-key", "/dev/stdin", "-subj", "/CN=a"],
        input=key, capture_output=True, check=True,
    )  # fmt: skip
    with pytest.raises(CertificateError, match="SHA-2"):
        check_csr(made.stdout.decode())


def test_a_csr_that_another_key_signed_is_refused() -> None:
    """Somebody else's public key can't be enrolled: the signature must be its own."""
    der = bytearray(ssl.PEM_cert_to_DER_cert(make(EC_KEY).replace(" REQUEST", "")))
    public = EC_KEY.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    at = bytes(der).index(public)
    der[at : at + len(public)] = other.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    pem = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    with pytest.raises(CertificateError, match="not signed by its own key"):
        check_csr(pem)


@pytest.mark.parametrize(
    ("pem", "words"),
    [
        ("", "exactly one"),
        ("junk", "exactly one"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n", "cannot be read"),
        (make(EC_KEY) * 2, "exactly one"),
        (make(EC_KEY) + " " * 10241, "larger than 10240"),
        (make(EC_KEY).replace("REQUEST", "WISH"), "cannot be read"),
    ],
)
def test_what_is_no_single_small_csr_is_refused(pem: str, words: str) -> None:
    """Nothing, junk, two at once, and too much are each refused in words."""
    with pytest.raises(CertificateError, match=words):
        check_csr(pem)


@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_a_damaged_csr_is_a_refusal_and_never_a_traceback(place: int, noise: bytes) -> None:
    """Bytes overwritten anywhere in a good CSR give a CertificateError, or a CSR that is still right."""
    der = bytearray(GOOD_DER)
    der[place % len(der) : place % len(der) + len(noise)] = noise
    pem = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    try:
        check_csr(pem)
    except CertificateError:
        return


@settings(max_examples=100, deadline=None, database=None)
@given(st.text(max_size=300))
def test_any_text_is_a_refusal_and_never_a_traceback(text: str) -> None:
    """Text of any kind between the lines of a CSR is refused by name."""
    with pytest.raises(CertificateError):
        check_csr(f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
