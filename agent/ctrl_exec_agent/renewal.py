"""The agent's certificate after pairing: its renewal, staging and promotion.

Owns the staged certificate. The key never changes here: a certificate for another key is refused.
"""

from __future__ import annotations

import os

from ctrl_exec.common import files
from ctrl_exec.common.certificate import SERVER_AUTH, der_to_pem, parse_certificate, pem_to_der
from ctrl_exec.common.clock import utc_now
from ctrl_exec.common.errors import CertificateError, ProgramError, StorageError
from ctrl_exec.common.program import run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec_agent.config import AgentConfig

LIMIT_BYTES = 64 * 1024
CERTIFICATE_MODE = 0o640
_OPENSSL_S = 20.0
_DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/opt/openssl/bin")


def run_openssl(arguments: Sequence[str], stdin: bytes = b"") -> bytes:
    """What the system's openssl prints for the arguments.

    Raises: ProgramError if there is none or it fails, with its own last words.
    """
    program = next((path for each in _DIRECTORIES if os.access(path := f"{each}/openssl", os.X_OK)), None)
    if program is None:
        raise ProgramError("not found in " + ", ".join(_DIRECTORIES), program="openssl")
    # no configuration file of the machine may change what is signed or trusted
    environment = {"PATH": ":".join(_DIRECTORIES), "LC_ALL": "C", "OPENSSL_CONF": "/dev/null"}
    ended = run_program([program, *arguments], environment=environment, stdin=stdin, timeout_s=_OPENSSL_S)
    if not ended.succeeded:
        words = ended.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise ProgramError(words or "failed", program=f"openssl {arguments[0]}")
    return ended.stdout


def make_csr(key_path: str, name: str) -> str:
    """A certificate signing request for the key, as PEM.

    X.520 allows 64 letters in it; the dispatcher takes the name from its registry anyway.

    Raises: ProgramError.
    """
    subject = f"/CN={name[:64]}"
    return run_openssl(["req", "-new", "-sha256", "-key", key_path, "-subj", subject]).decode("ascii")


def check_chain(pem: str, ca_path: str, purpose: str) -> None:
    """Whether the certificate chains to the CA and may serve the purpose (`sslserver`, `sslclient`).

    Raises: CertificateError with openssl's reason.
    """
    arguments = ["verify", "-no-CApath", "-no-CAstore", "-CAfile", ca_path, "-purpose", purpose]
    try:
        run_openssl(arguments, pem.encode())
    except ProgramError as error:
        raise CertificateError(f"the certificate does not chain to {ca_path} ({error})") from error


def stage(config: AgentConfig, pem: str) -> Certificate:
    """Keep a renewed certificate for promotion, once chain, key, role and dates are right.

    Raises: CertificateError naming what is wrong; StorageError.
    """
    pem = only_certificate(pem)
    certificate = check_renewed(config, pem)
    files.write_atomic(config.staging_path, pem.encode("ascii"), CERTIFICATE_MODE)
    return certificate


def only_certificate(pem: str) -> str:
    """The first certificate in the PEM text, written anew and without what stands around it.

    Openssl knows more names for one than we do: of a text with several it would check, or load, another.

    Raises: CertificateError if there is none.
    """
    if len(pem) > LIMIT_BYTES or not pem.isascii():
        raise CertificateError("the certificate is no PEM text of at most 64 KiB")
    return der_to_pem(pem_to_der(pem))


def check_renewed(config: AgentConfig, pem: str) -> Certificate:
    """The certificate in the PEM text (of `only_certificate`), if it may take the place of ours.

    Raises: CertificateError naming what is wrong; StorageError if ours can't be read.
    """
    certificate = parse_certificate(pem_to_der(pem))
    if certificate.fingerprint != load_certificate(config.cert_path).fingerprint:
        raise CertificateError("the certificate is for another key")
    if not certificate.allows(SERVER_AUTH):
        raise CertificateError("the certificate does not allow serverAuth")
    if not certificate.not_before <= utc_now() <= certificate.not_after:
        raise CertificateError("the certificate is not valid now")
    check_chain(pem, config.ca_path, "sslserver")
    return certificate


def load_certificate(path: str) -> Certificate:
    """The certificate in a PEM file. Raises: StorageError, CertificateError."""
    return parse_certificate(pem_to_der(_read(path)))


def has_staged(config: AgentConfig) -> bool:
    """Whether a renewed certificate waits for its promotion."""
    return os.path.exists(config.staging_path)


def can_promote(config: AgentConfig) -> bool:
    """Whether this process may put a file in the place of the certificate."""
    return os.access(os.path.dirname(config.cert_path), os.W_OK | os.X_OK)


def promote(config: AgentConfig) -> Certificate:
    """Put the staged certificate in the place of ours, after checking it again.

    Raises: StorageError (none staged, no right to write), CertificateError.
    """
    try:
        pem = files.read_bounded(config.staging_path, LIMIT_BYTES).decode("ascii", "replace")
        about = os.stat(config.cert_path)
    except FileNotFoundError as error:
        raise StorageError("no certificate is staged", path=config.staging_path) from error
    pem = only_certificate(pem)
    certificate = check_renewed(config, pem)
    owner = (about.st_uid, about.st_gid) if os.geteuid() == 0 else None
    files.write_atomic(config.cert_path, pem.encode("ascii"), about.st_mode & 0o777, owner=owner)
    files.remove(config.staging_path)
    return certificate


def _read(path: str) -> str:
    try:
        return files.read_bounded(path, LIMIT_BYTES, follow=True).decode("ascii", "replace")
    except FileNotFoundError as error:
        raise StorageError("no such file", path=path) from error
