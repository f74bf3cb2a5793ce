"""Whom the agent obeys: the trust map, the revoked serials, and the judgement of a certificate.

Owns `ctrl-exec-dispatchers` and the reading of `revoked-serials`. The chain to the CA was checked
in the handshake; here only the serial, the role and the dates count.
"""

from __future__ import annotations

import os
import select

from ctrl_exec.common import files
from ctrl_exec.common.certificate import CLIENT_AUTH, normalise_serial
from ctrl_exec.common.clock import monotonic, utc_now
from ctrl_exec.common.errors import (
    CertificateError,
    ConflictError,
    CtrlExecError,
    InvalidNameError,
    StorageError,
)
from ctrl_exec.common.names import check_dispatcher_id
from ctrl_exec.common.value import field, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrl_exec.common.certificate import Certificate

LIMIT_BYTES = 1 << 20
TRUST_MODE = 0o644
_LOCK_WAIT_S = 5.0
NOT_TRUSTED, REVOKED = "serial mismatch", "certificate revoked"


@value
class TrustMap:
    """`serials`: hex serial → dispatcher id. `warnings`: lines that grant nothing because they are wrong."""

    serials: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@value
class Verdict:
    """`dispatcher` is who it is, '' if refused; then `error` is for the peer and `reason` for the log."""

    dispatcher: str = ""
    serial: str = ""
    error: str = ""
    reason: str = ""

    @property
    def is_trusted(self) -> bool:
        """Whether the peer may give orders."""
        return bool(self.dispatcher)


def load_trust_map(path: str) -> TrustMap:
    """The map in the file; no file is an empty map, which trusts nobody.

    Raises: StorageError if it can't be read.
    """
    serials: dict[str, str] = {}
    warnings = []
    for number, line in _lines(path):
        words = line.split()
        try:
            serial = normalise_serial(words[0])
            if len(words) > 2:
                raise InvalidNameError("expected '<hex serial> <dispatcher id>'")
            # a line of older peers may hold the serial alone: it is its own identity
            serials[serial] = check_dispatcher_id(words[1]) if len(words) == 2 else serial
        except (CertificateError, InvalidNameError) as error:
            warnings.append(f"{path}:{number}: {error}")
    return TrustMap(serials, tuple(warnings))


def load_revoked(path: str) -> frozenset[str]:
    """The revoked serials, one a line; no file means none.

    Raises: StorageError if the file can't be read or a line is no serial: nobody is trusted then.
    """
    found = set()
    for number, line in _lines(path):
        try:
            found.add(normalise_serial(line.split()[0]))
        except CertificateError as error:
            raise StorageError(f"line {number}: {error}", path=path) from error
    return frozenset(found)


def judge(certificate: Certificate, trust_path: str, revoked_path: str) -> Verdict:
    """Whether the certificate, whose chain is right, is a dispatcher's that we obey now.

    Both files are read each time: a revocation counts from the next request on.
    """
    serial = certificate.serial
    try:
        revoked = load_revoked(revoked_path)
        trusted = load_trust_map(trust_path).serials
    except StorageError as error:
        return Verdict(serial=serial, error=NOT_TRUSTED, reason=str(error))
    if serial in revoked:
        return Verdict(serial=serial, error=REVOKED, reason="the serial is in revoked-serials")
    reason = _objection(certificate, trusted)
    if reason:
        return Verdict(serial=serial, error=NOT_TRUSTED, reason=reason)
    return Verdict(dispatcher=trusted[serial], serial=serial)


def _objection(certificate: Certificate, trusted: Mapping[str, str]) -> str:
    if not trusted:
        return "the trust map is empty"
    if certificate.serial not in trusted:
        return "the serial is not in the trust map"
    if certificate.version >= 3 and not certificate.allows(CLIENT_AUTH):
        return "the certificate does not allow clientAuth"
    if not certificate.not_before <= utc_now() <= certificate.not_after:
        return "the certificate is not valid now"
    return ""


def add_serial(path: str, serial: str, dispatcher: str) -> None:
    """Trust the serial as that dispatcher's from now on.

    Raises: ConflictError if it is another dispatcher's; StorageError.
    """
    with _Changing(path) as serials:
        if serials.get(serial, dispatcher) != dispatcher:
            raise ConflictError("the serial belongs to another dispatcher")
        serials[serial] = check_dispatcher_id(dispatcher)


def remove_serial(path: str, serial: str, dispatcher: str) -> None:
    """Trust the serial of that dispatcher no longer; one that is not there is no error.

    Raises: ConflictError if it is another dispatcher's; StorageError.
    """
    with _Changing(path) as serials:
        if serials.get(serial, dispatcher) != dispatcher:
            raise ConflictError("the serial belongs to another dispatcher")
        serials.pop(serial, None)


class _Changing:
    """The map under a lock, written back when the block ends without an error."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = -1
        self._serials: dict[str, str] = {}

    def __enter__(self) -> dict[str, str]:
        self._lock = files.open_lock(f"{self._path}.lock", 0o640)
        deadline = monotonic() + _LOCK_WAIT_S
        while not files.try_lock(self._lock):
            if monotonic() > deadline:
                os.close(self._lock)
                raise StorageError("another change of it does not end", path=self._path)
            select.select([], [], [], 0.01)
        self._serials = dict(load_trust_map(self._path).serials)
        return self._serials

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None:
                lines = "".join(f"{serial} {dispatcher}\n" for serial, dispatcher in self._serials.items())
                files.write_atomic(self._path, lines.encode(), TRUST_MODE)
        finally:
            os.close(self._lock)


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        text = files.read_bounded(path, LIMIT_BYTES, follow=True).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]


def trust_warnings(trust_path: str, revoked_path: str) -> tuple[str, ...]:
    """What is wrong with the two files, for the log at start and for `self-check`."""
    found: tuple[str, ...] = ()
    try:
        trust = load_trust_map(trust_path)
        found += trust.warnings
        if not trust.serials:
            found += (f"{trust_path}: no dispatcher is trusted, every request will be refused",)
        load_revoked(revoked_path)
    except CtrlExecError as error:
        found += (str(error),)
    return found
