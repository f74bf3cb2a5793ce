"""The private CA: making it, reading an existing one, issuing leaf certificates.

Owns every certificate this project issues: its fields, its serial, its lifetime. Works on bytes and
values; must not know where requests come from, who approved them, or where results are stored.
`cryptography` is imported in the functions that need it, since it costs a command 70 ms.
"""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta

from ctrl_exec.common import files
from ctrl_exec.common.certificate import DISPATCHER_URI, ca_fingerprint
from ctrl_exec.common.errors import CertificateError, ServiceError
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        CertificateIssuerPublicKeyTypes,
        CertificatePublicKeyTypes,
    )

CA_DAYS = 3650
DISPATCHER_DAYS = 825
PEM_LIMIT_BYTES = 64 * 1024
# clocks of two hosts differ; a certificate that is "not yet valid" at its first use helps nobody
BACKDATE = timedelta(minutes=5)
# RFC 5280 appendix A.1, ub-common-name: a longer name stands in the alternative names only
_ANY_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, for which pyOpenSSL has no name
_COMMON_NAME_LIMIT = 64
# the first with aware dates and comparable keys; Debian 12's own package is 38
_LEAST_CRYPTOGRAPHY = 42


@value
class IssuedCertificate:
    """One certificate just signed; `serial` and `fingerprint` as registry records hold them."""

    pem: str
    der: bytes
    serial: str
    not_after: datetime
    fingerprint: str


def new_serial() -> int:
    """A random positive serial of at most 127 bits that nobody can take for a decimal number.

    Older peers read an all-digit serial as decimal, so one without a hex letter is never issued.
    Serials below 2^64 are left to adopted CAs, which counted theirs. The kernel's generator is
    asked each time: processes that sign at once share no state that could repeat.
    """
    while True:
        serial = int.from_bytes(os.urandom(16), "big") >> 1
        if serial >> 64 and set(f"{serial:x}") & set("abcdef"):
            return serial


def new_key_pem() -> bytes:
    """A fresh P-256 private key, PKCS #8 PEM without a password; its file must be 0600."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def spki_of_key(key_pem: bytes) -> bytes:
    """The SPKI DER of a private key's public half. Raises: CertificateError."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    try:
        public = load_pem_private_key(key_pem, None).public_key()
    except (ValueError, TypeError) as error:
        raise CertificateError("the private key is not an unencrypted PEM key") from error
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_library() -> None:
    """Refuse a `cryptography` that is too old, as a bare checkout may find. Raises: ServiceError."""
    import cryptography

    if int(cryptography.__version__.partition(".")[0]) < _LEAST_CRYPTOGRAPHY:
        raise ServiceError(
            f"the Python package cryptography {cryptography.__version__} is too old, "
            f"{_LEAST_CRYPTOGRAPHY} is needed: run `make install`, then .venv/bin/ctrl-exec"
        )


def create_authority(now: datetime) -> tuple[bytes, bytes]:
    """(key PEM, certificate PEM) of a new CA: P-256, 10 years, may sign leaves and nothing deeper.

    Its name carries random digits, so that a host that knows two CAs can tell them apart.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
    from cryptography.x509.oid import NameOID

    _check_library()
    key_pem = new_key_pem()
    key = _as_issuer_key(load_pem_private_key(key_pem, None))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ctrl-exec CA {os.urandom(4).hex()}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(new_serial())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key_pem, certificate.public_bytes(Encoding.PEM)


def load_authority(key_path: str, certificate_path: str) -> CertificateAuthority:
    """The CA of these files, ours or an adopted RSA one.

    Raises: CertificateError naming the file that is missing, unreadable, or does not fit.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    _check_library()
    certificate_pem = _read_pem(certificate_path)
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateError(f"{certificate_path}: no PEM certificate") from error
    try:
        key = _as_issuer_key(load_pem_private_key(_read_pem(key_path), None))
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{key_path}: no unencrypted PEM key") from error
    if certificate.public_key() != key.public_key():
        raise CertificateError(f"{key_path}: is not the key of {certificate_path}")
    if not _may_sign(certificate):
        raise CertificateError(f"{certificate_path}: is not a CA's certificate (CA:TRUE is missing)")
    return CertificateAuthority(key, certificate)


def _read_pem(path: str) -> bytes:
    try:
        return files.read_bounded(path, PEM_LIMIT_BYTES, follow=True)
    except FileNotFoundError as error:
        raise CertificateError(f"{path}: does not exist; `ctrl-exec setup-ca` makes a CA") from error


def _as_issuer_key(key: object) -> CertificateIssuerPrivateKeyTypes:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        return key
    raise CertificateError("the CA's key is of a kind that is not used here: expected EC, RSA or Ed25519")


def _may_sign(certificate: x509.Certificate) -> bool:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        # a self-signed certificate of version 1 is a root to OpenSSL; deployments have such
        return certificate.version == x509.Version.v1 and certificate.issuer == certificate.subject


class CertificateAuthority:
    """A CA whose key is in memory: the one thing in this project that makes certificates."""

    def __init__(self, key: CertificateIssuerPrivateKeyTypes, certificate: x509.Certificate) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding

        self._key = key
        self._certificate = certificate
        self.pem = certificate.public_bytes(Encoding.PEM).decode("ascii")
        self.der = certificate.public_bytes(Encoding.DER)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER, hex."""
        return ca_fingerprint(self.der)

    def issue_agent(self, spki: bytes, name: str, *, days: int, now: datetime) -> IssuedCertificate:
        """An agent's certificate: serverAuth only, so that it can't command other agents."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        return self._issue(spki, name, [x509.DNSName(name)], [ExtendedKeyUsageOID.SERVER_AUTH], (now, days))

    def issue_dispatcher(
        self, spki: bytes, dispatcher_id: str, *, now: datetime, days: int = DISPATCHER_DAYS
    ) -> IssuedCertificate:
        """The dispatcher's certificate: clientAuth, serverAuth (pairing), and its id as a URI."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        names: list[x509.GeneralName] = [
            x509.DNSName(dispatcher_id.lower()),
            x509.UniformResourceIdentifier(DISPATCHER_URI + dispatcher_id),
        ]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        return self._issue(spki, dispatcher_id, names, usages, (now, days))

    def issue_server(
        self, spki: bytes, host_names: Sequence[str], addresses: Sequence[str], *, days: int, now: datetime
    ) -> IssuedCertificate:
        """A web server's certificate (the API's) for the names and addresses it is reached by."""
        import ipaddress

        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        names: list[x509.GeneralName] = [x509.DNSName(each) for each in host_names]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
        return self._issue(spki, host_names[0], names, [ExtendedKeyUsageOID.SERVER_AUTH], (now, days))

    def check_issued(self, der: bytes) -> None:
        """Check that the certificate chains to this CA as a TLS peer will find, whatever its dates.

        Raises: CertificateError if it does not.
        """
        from cryptography import x509
        from OpenSSL import crypto

        store = crypto.X509Store()
        store.set_flags(_ANY_TIME)
        try:
            store.add_cert(crypto.X509.from_cryptography(self._certificate))
            shown = crypto.X509.from_cryptography(x509.load_der_x509_certificate(der))
            crypto.X509StoreContext(store, shown).verify_certificate()
        except (ValueError, TypeError, crypto.Error, crypto.X509StoreContextError) as error:
            raise CertificateError(f"the certificate was not issued by this CA ({error})") from error

    def _issue(
        self,
        spki: bytes,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        lifetime: tuple[datetime, int],
    ) -> IssuedCertificate:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
        from cryptography.x509.oid import NameOID

        public = load_der_public_key(spki)
        is_named = len(common_name) <= _COMMON_NAME_LIMIT
        now, days = lifetime
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if is_named else []
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self._certificate.subject)
            .public_key(_as_leaf_key(public))
            .serial_number(new_serial())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(self._expiry(now, days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_rsa=isinstance(public, rsa.RSAPublicKey)), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            # RFC 5280 §4.1.2.6: with an empty subject the alternative names are critical
            .add_extension(x509.SubjectAlternativeName(names), critical=not is_named)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(_as_leaf_key(public)), critical=False)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self._key, _digest_for(self._key))
        )
        der = certificate.public_bytes(Encoding.DER)
        return IssuedCertificate(
            pem=certificate.public_bytes(Encoding.PEM).decode("ascii"),
            der=der,
            serial=f"{certificate.serial_number:x}",
            not_after=certificate.not_valid_after_utc,
            fingerprint=hashlib.sha256(spki).hexdigest(),
        )

    def _expiry(self, now: datetime, days: int) -> datetime:
        """No leaf outlives its CA. Raises: CertificateError if the CA has expired."""
        last = self._certificate.not_valid_after_utc
        if last <= now:
            raise CertificateError(f"the CA's certificate expired on {last:%Y-%m-%d}; it can sign nothing")
        return min(now + timedelta(days=days), last)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        from cryptography import x509

        try:
            known = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known.value)

    def _public_key(self) -> CertificateIssuerPublicKeyTypes:
        return self._key.public_key()


def _as_leaf_key(public: object) -> CertificatePublicKeyTypes:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(public, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey, ed25519.Ed25519PublicKey)):
        return public
    raise CertificateError("the key is of a kind that is not used here: expected EC, RSA or Ed25519")


def _digest_for(key: CertificateIssuerPrivateKeyTypes) -> hashes.SHA256 | None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _key_usage(*, is_ca: bool = False, is_rsa: bool = False) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=is_rsa,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
