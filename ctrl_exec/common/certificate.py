"""Reading X.509 certificates with the standard library alone: the few fields trust needs.

A strict DER reader, bounded and without recursion; it verifies nothing (OpenSSL did, in the
handshake). Source: RFC 5280 §4.1, ITU-T X.690.
"""

from __future__ import annotations

import binascii

from ctrl_exec.common.digest import sha256
from ctrl_exec.common.errors import CertificateError
from ctrl_exec.common.names import FINGERPRINT, Spelling
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import UTC, datetime
else:
    from _datetime import UTC, datetime  # `datetime` runs the same in Python first, 1 ms of a command's start

DISPATCHER_URI = "urn:ctrl-exec:dispatcher:"
SERVER_AUTH = "1.3.6.1.5.5.7.3.1"
CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
ANY_USAGE = "2.5.29.37.0"
LIMIT_BYTES = 64 * 1024

# these three as they stand in the DER: what is only compared need not be put into words
_SUBJECT_ALT_NAME = b"\x55\x1d\x11"  # 2.5.29.17
_EXTENDED_KEY_USAGE = b"\x55\x1d\x25"  # 2.5.29.37
_COMMON_NAME = b"\x55\x04\x03"  # 2.5.4.3
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_DIGITS = "0123456789"
_TIME = Spelling(_DIGITS, _DIGITS, 14, 14)
_SERIAL = Spelling(_DIGITS + "abcdef", _DIGITS + "abcdef", 1, 64)


@value
class Certificate:
    """What we read from a certificate.

    `serial`: lower-case hex without leading zeros. `fingerprint`: SHA-256 of the SPKI DER, hex.
    `extended_usages`: OIDs, or None where the extension is missing (which allows all).
    """

    version: int
    serial: str
    not_before: datetime
    not_after: datetime
    fingerprint: str
    common_name: str
    uris: tuple[str, ...]
    dns_names: tuple[str, ...]
    extended_usages: tuple[str, ...] | None

    @property
    def dispatcher_id(self) -> str | None:
        """The id in the `urn:ctrl-exec:dispatcher:` URI, None where there is none."""
        found = [uri.removeprefix(DISPATCHER_URI) for uri in self.uris if uri.startswith(DISPATCHER_URI)]
        return found[0] if found else None

    def allows(self, usage: str) -> bool:
        """Whether the extended key usage allows it; a certificate without the extension allows all."""
        usages = self.extended_usages
        return usages is None or usage in usages or ANY_USAGE in usages


class _Reader:
    """Reads one DER element after the other from a slice of bytes."""

    def __init__(self, source: bytes, start: int = 0, end: int | None = None) -> None:
        self.source = source
        self.at = start
        self.end = len(source) if end is None else end

    def is_done(self) -> bool:
        return self.at >= self.end

    def peek(self) -> int:
        if self.is_done():
            raise CertificateError("the certificate ends early")
        return self.source[self.at]

    def element(self, tag: int | None = None) -> tuple[int, int, int, int]:
        """(tag, start of the element, start of its content, end). Raises: CertificateError."""
        start = self.at
        if start + 1 >= self.end:  # there is no length
            raise CertificateError("the certificate ends early")
        found = self.source[start]
        if tag is not None and found != tag:
            raise CertificateError(f"the certificate has tag {found:#04x} where {tag:#04x} is expected")
        # most elements are short: their length is the next byte
        length, content = self.source[start + 1], start + 2
        if length >= 0x80:
            length, content = self._length(start + 1)
        end = content + length
        if end > self.end:
            raise CertificateError("the certificate ends early")
        self.at = end
        return found, start, content, end

    def _length(self, at: int) -> tuple[int, int]:
        count = self.source[at] & 0x7F
        if not 1 <= count <= 4 or at + 1 + count > self.end:
            raise CertificateError("the certificate has a bad length")
        return int.from_bytes(self.source[at + 1 : at + 1 + count], "big"), at + 1 + count

    def content(self, tag: int | None = None) -> bytes:
        _, _, start, end = self.element(tag)
        return self.source[start:end]

    def enter(self, tag: int) -> _Reader:
        _, _, start, end = self.element(tag)
        return _Reader(self.source, start, end)


def parse_certificate(der: bytes) -> Certificate:
    """The fields of a DER certificate.

    Raises: CertificateError if it is none.
    """
    if len(der) > LIMIT_BYTES:
        raise CertificateError(f"the certificate is larger than {LIMIT_BYTES} bytes")
    body = _Reader(der).enter(0x30).enter(0x30)
    version = 1
    if body.peek() == 0xA0:
        version = int.from_bytes(body.enter(0xA0).content(0x02), "big") + 1
    serial = int.from_bytes(body.content(0x02), "big", signed=True)
    body.element(0x30)  # signature algorithm
    body.element(0x30)  # issuer
    validity = body.enter(0x30)
    not_before, not_after = _time(validity), _time(validity)
    common_name = _common_name(body.enter(0x30))
    _, start, _, end = body.element(0x30)
    extensions = _extensions(body)
    uris, dns_names = _alternative_names(extensions.get(_SUBJECT_ALT_NAME))
    return Certificate(
        version=version,
        serial=f"{serial:x}",
        not_before=not_before,
        not_after=not_after,
        fingerprint=str(sha256(der[start:end]).hexdigest()),
        common_name=common_name,
        uris=uris,
        dns_names=dns_names,
        extended_usages=_usages(extensions.get(_EXTENDED_KEY_USAGE)),
    )


def key_fingerprint(der: bytes) -> str:
    """The `fingerprint` of a DER certificate alone, in a tenth of the time that all its fields take.

    Raises: CertificateError if the key is not found.
    """
    if len(der) > LIMIT_BYTES:
        raise CertificateError(f"the certificate is larger than {LIMIT_BYTES} bytes")
    body = _Reader(der).enter(0x30).enter(0x30)
    if body.peek() == 0xA0:
        body.element(0xA0)
    for tag in (0x02, 0x30, 0x30, 0x30, 0x30):  # serial, algorithm, issuer, validity, subject
        body.element(tag)
    _, start, _, end = body.element(0x30)
    return str(sha256(der[start:end]).hexdigest())


def _time(reader: _Reader) -> datetime:
    tag = reader.peek()
    text = reader.content().decode("ascii", "replace")
    if tag == 0x17 and len(text) == 13:  # UTCTime: two-digit years, 50 and above are 19xx
        text = ("19" if text >= "50" else "20") + text
    elif tag != 0x18:
        text = ""
    # strptime would do; its module would cost every agent 400 KB and each of its children the page faults
    if not (text.endswith("Z") and _TIME.fullmatch(text[:-1])):
        raise CertificateError("the certificate has a bad time")
    try:
        month, day, hour, minute, second = [int(text[at : at + 2]) for at in range(4, 14, 2)]
        return datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise CertificateError("the certificate has a bad time") from error


def _common_name(name: _Reader) -> str:
    found = ""
    while not name.is_done():
        group = name.enter(0x31)
        while not group.is_done():
            pair = group.enter(0x30)
            oid = pair.content(0x06)
            text = pair.content()
            if oid == _COMMON_NAME:
                found = text.decode("utf-8", "replace")
    return found


def _extensions(body: _Reader) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while not body.is_done():
        if body.peek() != 0xA3:
            body.element()
            continue
        listed = body.enter(0xA3).enter(0x30)
        while not listed.is_done():
            one = listed.enter(0x30)
            oid = one.content(0x06)
            if one.peek() == 0x01:
                one.element(0x01)
            found[oid] = one.content(0x04)
    return found


def _alternative_names(extension: bytes | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    uris, dns_names = [], []
    if extension is not None:
        names = _Reader(extension).enter(0x30)
        while not names.is_done():
            tag, _, start, end = names.element()
            text = names.source[start:end].decode("ascii", "replace")
            if tag == 0x86:
                uris.append(text)
            elif tag == 0x82:
                dns_names.append(text)
    return tuple(uris), tuple(dns_names)


def _usages(extension: bytes | None) -> tuple[str, ...] | None:
    if extension is None:
        return None
    found = []
    listed = _Reader(extension).enter(0x30)
    while not listed.is_done():
        found.append(_oid(listed.content(0x06)))
    return tuple(found)


def _oid(content: bytes) -> str:
    if not content or len(content) > 64:
        raise CertificateError("the certificate has a bad object identifier")
    first = min(content[0] // 40, 2)
    parts = [first, content[0] - 40 * first]
    number = 0
    for byte in content[1:]:
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            parts.append(number)
            number = 0
    return ".".join(map(str, parts))


def pem_to_der(pem: str) -> bytes:
    """The DER of the first certificate in the PEM text.

    Raises: CertificateError.
    """
    body, end, _ = pem.partition(_BEGIN)[2].partition(_END)
    if not end or not body.strip():
        raise CertificateError("expected a PEM certificate (-----BEGIN CERTIFICATE-----)")
    try:
        return binascii.a2b_base64("".join(body.split()), strict_mode=True)
    except ValueError as error:
        raise CertificateError("the PEM certificate is not base64") from error


def der_to_pem(der: bytes) -> str:
    """The certificate as text. Source: RFC 7468 §2."""
    text = binascii.b2a_base64(der, newline=False).decode("ascii")
    lines = (text[at : at + 64] for at in range(0, len(text), 64))
    return "\n".join((_BEGIN, *lines, _END, ""))


def ca_fingerprint(der: bytes) -> str:
    """SHA-256 of the certificate's DER, lower-case hex without colons."""
    return str(sha256(der).hexdigest())


def normalise_fingerprint(text: str) -> str:
    """A SHA-256 fingerprint as typed (colons, any case) as 64 lower-case hex digits.

    Raises: CertificateError.
    """
    folded = text.strip().replace(":", "").lower()
    if not FINGERPRINT.fullmatch(folded):
        raise CertificateError(
            "a fingerprint is 64 hex digits, as openssl x509 -fingerprint -sha256 prints it"
        )
    return folded


def normalise_serial(text: str) -> str:
    """A serial as written in files and on the wire, always read as hex, without leading zeros.

    Raises: CertificateError.
    """
    folded = text.strip().lower().replace(":", "").removeprefix("0x")
    if not _SERIAL.fullmatch(folded):
        raise CertificateError(f"{text[:80]!a} is no serial: expected hex digits")
    return folded.lstrip("0") or "0"
