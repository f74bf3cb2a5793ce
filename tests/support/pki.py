"""A certificate authority for tests, independent of ours: any mistake can be put into a certificate."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
NOW = dt.datetime.now(dt.UTC)


def new_key(bits: int = 0) -> Key:
    """A P-256 key, or an RSA key of that many bits."""
    return rsa.generate_private_key(65537, bits) if bits else ec.generate_private_key(ec.SECP256R1())


@dataclass
class Leaf:
    """A certificate with its key, as files."""

    certificate: x509.Certificate
    key: Key
    pem: Path  # certificate and key in one file
    crt: Path
    key_path: Path

    @property
    def serial(self) -> str:
        """Lower-case hex without leading zeros."""
        return f"{self.certificate.serial_number:x}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SPKI DER."""
        spki = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest = hashes.Hash(hashes.SHA256())
        digest.update(spki)
        return digest.finalize().hex()


@dataclass
class TestCA:
    """A CA with its files below `directory`."""

    __test__ = False
    directory: Path
    name: str = "Test CA"
    rsa_bits: int = 0
    key: Key = field(init=False)
    certificate: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.key = new_key(self.rsa_bits)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=1))
            .not_valid_after(NOW + dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        (self.directory / "ca.key").write_bytes(_key_pem(self.key))
        (self.directory / "ca.key").chmod(0o600)

    @property
    def path(self) -> Path:
        """The CA certificate as PEM."""
        return self.directory / "ca.crt"

    def issue(
        self,
        name: str,
        *,
        usages: tuple[x509.ObjectIdentifier, ...] = (SERVER,),
        uri: str | None = None,
        days: float = 365,
        starts_days: float = -1,
        serial: int | None = None,
        key: Key | None = None,
        rsa_bits: int = 0,
    ) -> Leaf:
        """A v3 leaf; `days` and `starts_days` count from now, negative ones lie in the past."""
        key = key or new_key(rsa_bits)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial or (x509.random_serial_number() | 0xA0))
            .not_valid_before(NOW + dt.timedelta(days=starts_days))
            .not_valid_after(NOW + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        )
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if uri:
            names.append(x509.UniformResourceIdentifier(uri))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        return self._save(name, builder.sign(self.key, hashes.SHA256()), key)

    def dispatcher(self, dispatcher_id: str = "main", **options: object) -> Leaf:
        """A dispatcher's certificate: both usages and the URI."""
        uri = f"urn:ctrl-exec:dispatcher:{dispatcher_id}"
        return self.issue(f"dispatcher-{dispatcher_id}", usages=(CLIENT, SERVER), uri=uri, **options)  # type: ignore[arg-type]

    def issue_v1(self, name: str, *, serial: int, key: Key | None = None, rsa_bits: int = 0) -> Leaf:
        """A leaf as older deployments have it: X.509 v1, common name only, a small sequential serial."""
        leaf = self.issue(name, serial=serial, key=key, rsa_bits=rsa_bits)
        fields = _elements(_content(leaf.certificate.tbs_certificate_bytes))
        # without [0] version and [3] extensions what is left is a v1 certificate
        body = _element(0x30, b"".join(each for each in fields if each[0] not in (0xA0, 0xA3)))
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            signature = self.key.sign(body, ec.ECDSA(hashes.SHA256()))
        else:
            signature = self.key.sign(body, padding.PKCS1v15(), hashes.SHA256())
        whole = _elements(_content(leaf.certificate.public_bytes(serialization.Encoding.DER)))
        der = _element(0x30, body + whole[1] + _element(0x03, b"\0" + signature))
        return self._save(f"{name}-v1", x509.load_der_x509_certificate(der), leaf.key)

    def _save(self, name: str, certificate: x509.Certificate, key: Key) -> Leaf:
        stem = f"{name}-{certificate.serial_number:x}"[:80]
        crt, key_path, pem = (self.directory / f"{stem}.{end}" for end in ("crt", "key", "pem"))
        crt.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(_key_pem(key))
        pem.write_bytes(key_path.read_bytes() + crt.read_bytes())
        for path in (key_path, pem):
            path.chmod(0o600)
        return Leaf(certificate, key, pem, crt, key_path)


def _key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _element(tag: int, content: bytes) -> bytes:
    """One DER element. Source: ITU-T X.690 §8.1."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _size(der: bytes) -> tuple[int, int]:
    """(bytes of tag and length, bytes of content) of the first element."""
    if der[1] < 0x80:
        return 2, der[1]
    count = der[1] & 0x7F
    return 2 + count, int.from_bytes(der[2 : 2 + count], "big")


def _content(der: bytes) -> bytes:
    head, size = _size(der)
    return der[head : head + size]


def _elements(content: bytes) -> list[bytes]:
    found = []
    while content:
        head, size = _size(content)
        found.append(content[: head + size])
        content = content[head + size :]
    return found
