"""The dispatcher's identity on disk: key and certificate in one file, and the link that names it.

Owns `identity/<serial>.pem`, `identity/current`, and the links `dispatcher.crt` and
`dispatcher.key`. One rename of `current` swaps key and certificate together, so that no reader ever
sees one without the other. Must not know how certificates are made.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from ctrl_exec.common import files
from ctrl_exec.common.certificate import Certificate, parse_certificate, pem_to_der
from ctrl_exec.common.errors import CertificateError, StorageError
from ctrl_exec.common.value import value

IDENTITY_MODE = 0o600
CURRENT = "current"
PEM_LIMIT_BYTES = 64 * 1024
# where older deployments keep the dispatcher's own certificate, beside the CA
ADOPTED_STEMS = ("ctrl-exec", "dispatcher")
_SERIAL = re.compile(r"[0-9a-f]{1,64}", re.ASCII)
_KEY_BLOCK = re.compile(
    rb"-----BEGIN (?:EC |RSA )?PRIVATE KEY-----[A-Za-z0-9+/=\s]+-----END (?:EC |RSA )?PRIVATE KEY-----"
)


@value
class Identity:
    """The dispatcher's certificate as it is in use; the key stays in its file."""

    path: str
    der: bytes
    certificate: Certificate

    @property
    def serial(self) -> str:
        """Lower-case hex without leading zeros, as agents keep it in their trust maps."""
        return self.certificate.serial

    def dispatcher_id(self, default: str) -> str:
        """The id the certificate states; an adopted one of version 1 states none."""
        return self.certificate.dispatcher_id or default


def load_identity(certificate_path: str) -> Identity:
    """The identity whose certificate is in the file. Raises: CertificateError naming the file."""
    der = read_certificate(certificate_path, made_by="setup-ctrl-exec")
    try:
        return Identity(certificate_path, der, parse_certificate(der))
    except CertificateError as error:
        raise CertificateError(f"{certificate_path}: {error}") from error


def read_certificate(path: str, *, made_by: str) -> bytes:
    """The DER of the first certificate in a PEM file; `made_by` is the command that makes a missing one.

    Raises: CertificateError naming the file.
    """
    try:
        content = files.read_bounded(path, PEM_LIMIT_BYTES, follow=True)
        return pem_to_der(content.decode("ascii", "replace"))
    except FileNotFoundError as error:
        raise CertificateError(f"{path}: does not exist; `ctrl-exec {made_by}` makes it") from error
    except StorageError as error:
        raise CertificateError(str(error)) from error
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from error


def store_identity(
    identity_dir: str,
    key_pem: bytes,
    certificate_pem: str,
    *,
    owner: tuple[int, int] | None = None,
    directory_owner: tuple[int, int] | None = None,
) -> str:
    """Write `<serial>.pem` with the key and the certificate; gives its serial.

    Raises: CertificateError for a serial that is no file name; StorageError.
    """
    serial = parse_certificate(pem_to_der(certificate_pem)).serial
    files.make_dirs(identity_dir, 0o750, owner=directory_owner)
    content = key_pem.strip() + b"\n" + certificate_pem.strip().encode("ascii") + b"\n"
    files.write_atomic(_path(identity_dir, serial), content, IDENTITY_MODE, owner=owner)
    return serial


def activate(identity_dir: str, serial: str) -> None:
    """Make the stored identity the current one, by one rename. Raises: StorageError."""
    if not os.path.isfile(_path(identity_dir, serial)):
        raise StorageError("there is no such identity", path=_path(identity_dir, serial))
    point(os.path.join(identity_dir, CURRENT), f"{serial}.pem")


def point(link: str, target: str) -> None:
    """Make `link` a symbolic link to the target, replacing what was there. Raises: StorageError."""
    temporary = f"{link}.{os.urandom(6).hex()}"
    try:
        os.symlink(target, temporary)
        try:
            os.rename(temporary, link)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        directory = files.open_dir(os.path.dirname(link) or ".")
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=link) from error


def link_identity(identity_dir: str, certificate_path: str, key_path: str) -> None:
    """Let the two configured paths name the current identity. Raises: StorageError."""
    for path in (certificate_path, key_path):
        target = os.path.join(identity_dir, CURRENT)
        point(path, os.path.relpath(target, os.path.dirname(path)))


def is_linked(identity_dir: str, path: str) -> bool:
    """Whether the path is our link into the identity directory."""
    return os.path.islink(path) and os.path.realpath(path) == os.path.realpath(
        os.path.join(identity_dir, CURRENT)
    )


def find_adoptable(directories: tuple[str, ...]) -> tuple[bytes, str] | None:
    """(key PEM, certificate PEM) of the identity an existing deployment left in a directory, or None.

    Raises: StorageError when one is there and unreadable, CertificateError when it is damaged.
    """
    for directory in dict.fromkeys(directories):
        for stem in ADOPTED_STEMS:
            found = read_pair(os.path.join(directory, f"{stem}.crt"), os.path.join(directory, f"{stem}.key"))
            if found is not None:
                return found
    return None


def read_pair(certificate_path: str, key_path: str) -> tuple[bytes, str] | None:
    """(key PEM, certificate PEM) of the two files, None unless both exist.

    Raises: StorageError; CertificateError when a file holds something else.
    """
    try:
        certificate_pem = files.read_bounded(certificate_path, PEM_LIMIT_BYTES, follow=True)
        key_content = files.read_bounded(key_path, PEM_LIMIT_BYTES, follow=True)
    except FileNotFoundError:
        return None
    key = _KEY_BLOCK.search(key_content)
    if key is None:
        raise CertificateError(f"{key_path}: expected an unencrypted PEM private key")
    text = certificate_pem.decode("ascii", "replace")
    try:
        parse_certificate(pem_to_der(text))
    except CertificateError as error:
        raise CertificateError(f"{certificate_path}: {error}") from error
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return key[0], text[text.index(begin) : text.index(end) + len(end)]


def _path(identity_dir: str, serial: str) -> str:
    if not _SERIAL.fullmatch(serial):
        raise CertificateError(f"{serial[:80]!a} is no serial in lower-case hex")
    return os.path.join(identity_dir, f"{serial}.pem")
