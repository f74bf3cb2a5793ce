"""Storing what a pairing gave: key, certificate, CA, and the dispatcher to trust.

Owns the order and the modes of these files. Their owner follows the directory they lie in: in a
system installation root's, with the agent's group; in a private instance whoever runs it.
"""

from __future__ import annotations

import os
import stat

from ctrl_exec.common import files
from ctrl_exec.common.certificate import ca_fingerprint, pem_to_der
from ctrl_exec.common.errors import CertificateError, StorageError
from ctrl_exec.common.value import value
from ctrl_exec_agent.trust import TRUST_MODE, add_serial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec_agent.config import AgentConfig

FILE_MODE = 0o640
LIMIT_BYTES = 64 * 1024
BARE_SERIAL_KEY = "allow_bare_serial"


@value
class Enrolled:
    """An approval, checked: our certificate, its CA, and the dispatcher we are to obey."""

    certificate_pem: str
    ca_pem: str
    dispatcher_serial: str
    dispatcher_id: str
    is_legacy: bool = False


def store(config: AgentConfig, key_path: str, enrolled: Enrolled) -> Enrolled:
    """Put the new key, certificate, CA and trust in place; an earlier pairing is replaced.

    Dispatchers of another CA are forgotten: their certificates could not be verified any more.

    Raises: StorageError.
    """
    is_same_ca = _is_same_ca(config.ca_path, enrolled.ca_pem)
    try:
        key = files.read_bounded(key_path, LIMIT_BYTES)
    except FileNotFoundError as error:
        raise StorageError(
            "the new key is gone; is another request-pairing running?", path=key_path
        ) from error
    _put(config.key_path, key)
    _put(config.cert_path, enrolled.certificate_pem.encode("ascii"))
    _put(config.ca_path, enrolled.ca_pem.encode("ascii"))
    files.make_dirs(os.path.dirname(config.trust_path), 0o750)
    if not is_same_ca:
        files.remove(config.trust_path)
    add_serial(config.trust_path, enrolled.dispatcher_serial, enrolled.dispatcher_id)
    _hand_over(config.trust_path, TRUST_MODE)
    _hand_over(config.trust_path + ".lock", FILE_MODE)
    if enrolled.is_legacy and not config.allow_bare_serial:
        _allow_bare_serial(config.path)
    return enrolled


def _put(path: str, content: bytes) -> None:
    files.make_dirs(os.path.dirname(path), 0o750)
    files.write_atomic(path, content, FILE_MODE, owner=_owner_in(os.path.dirname(path)))


def _owner_in(directory: str) -> tuple[int, int] | None:
    """The owner of files in the directory when root writes them: root, and the directory's group."""
    return (0, os.stat(directory).st_gid) if os.geteuid() == 0 else None


def _hand_over(path: str, mode: int) -> None:
    """Give a file in the state directory to whom the directory belongs."""
    if os.geteuid() != 0:
        return
    about = os.stat(os.path.dirname(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise StorageError("is no plain file of its own", path=path)
        os.fchown(fd, about.st_uid, about.st_gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _is_same_ca(path: str, ca_pem: str) -> bool:
    try:
        known = pem_to_der(files.read_bounded(path, LIMIT_BYTES, follow=True).decode("ascii", "replace"))
    except (FileNotFoundError, StorageError, CertificateError):
        return False
    return ca_fingerprint(known) == ca_fingerprint(pem_to_der(ca_pem))


def _allow_bare_serial(path: str) -> None:
    """Let an older dispatcher announce its next serial in its own way, which brings no certificate."""
    content = files.read_bounded(path, LIMIT_BYTES, follow=True).decode("utf-8")
    about = os.stat(path)
    # before the first section: keys after it would belong to that section
    lines = [line for line in content.split("\n") if line.partition("=")[0].strip() != BARE_SERIAL_KEY]
    at = next((place for place, line in enumerate(lines) if line.strip().startswith("[")), len(lines))
    added = ["# set by pairing with an older dispatcher", f"{BARE_SERIAL_KEY} = yes", ""]
    text = "\n".join([*lines[:at], *added, *lines[at:]])
    owner = (about.st_uid, about.st_gid) if os.geteuid() == 0 else None
    files.write_atomic(os.path.realpath(path), text.encode("utf-8"), about.st_mode & 0o777, owner=owner)
