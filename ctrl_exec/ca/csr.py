"""Certificate signing requests: what is taken from one, and what it must satisfy.

Owns the checks of a CSR, which the pairing listener makes before it queues one and the signer again
before it signs. Of a CSR only the public key counts; its names are never read. Must not know CA
keys, so that the process on the network has no code that signs.
"""

from __future__ import annotations

import hashlib

from ctrl_exec.common.errors import CertificateError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cryptography import x509

LIMIT_BYTES = 10 * 1024
RSA_LEAST_BITS = 2048
RSA_MOST_BITS = 8192  # beyond it one verification costs more than any peer of ours should


@value
class SigningRequest:
    """What is taken from a checked CSR: its exact DER and its public key, nothing else.

    `fingerprint` is the SHA-256 of the key's SPKI DER, `digest` that of the CSR's DER, both hex.
    """

    der: bytes
    spki: bytes
    fingerprint: str
    digest: str


def preload() -> None:
    """Import what every check needs, once, before a server forks its children."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    _ = (x509, hashes, serialization, ec, ed25519, rsa)


def check_csr(pem: str) -> SigningRequest:
    """The public key of a CSR that proves possession of its private key.

    Raises: CertificateError unless it is one PEM CSR of at most 10 KiB, self-signed with SHA-2, its
    key RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded = pem.encode("ascii", "replace")
    if len(encoded) > LIMIT_BYTES:
        raise CertificateError(f"the CSR is larger than {LIMIT_BYTES} bytes")
    if encoded.count(b"-----BEGIN") != 1:
        raise CertificateError("expected exactly one PEM certificate request")
    try:
        csr = x509.load_pem_x509_csr(encoded)
        key = csr.public_key()
        _check_key(key)
        _check_digest(csr)
        if not csr.is_signature_valid:
            raise CertificateError("the CSR is not signed by its own key")
        der = csr.public_bytes(Encoding.DER)
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise CertificateError("the CSR cannot be read") from error
    digest = hashlib.sha256(der).hexdigest()
    return SigningRequest(der, spki, hashlib.sha256(spki).hexdigest(), digest)


def _check_key(key: object) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        return
    if isinstance(key, rsa.RSAPublicKey) and RSA_LEAST_BITS <= key.key_size <= RSA_MOST_BITS:
        return
    raise CertificateError(
        "the CSR's key is too weak or of another kind: expected RSA of 2048 bits or more, "
        "P-256, P-384 or Ed25519"
    )


def _check_digest(csr: x509.CertificateSigningRequest) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ed25519

    if isinstance(csr.public_key(), ed25519.Ed25519PublicKey):
        return
    if not isinstance(csr.signature_hash_algorithm, (hashes.SHA256, hashes.SHA384, hashes.SHA512)):
        raise CertificateError("the CSR is not signed with SHA-2")
