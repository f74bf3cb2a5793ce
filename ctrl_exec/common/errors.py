"""Every error of ours, in one tree; what a caller can decide on is a class of its own.

    CtrlExecError
    ├── InvalidInputError            what was asked is malformed          (field, expected)
    │   ├── InvalidNameError         an agent, script or request id that is none
    │   ├── UsageError               a command line is wrong
    │   ├── MessageError             a body or wire message does not decode
    │   ├── InvalidFieldsError       keys of an object are wrong          (fields)
    │   └── PayloadError             one thing is too large to pass on    (field)
    ├── ConfigError                  a configuration file is wrong        (path, line)
    ├── NotFoundError                what was named does not exist
    │   ├── UnknownAgentError        names that are not registered        (names)
    │   ├── UnknownRunError          no record of that request id         (reqid)
    │   └── UnknownPairingError      no such pairing request              (request)
    ├── MethodNotAllowedError        the path exists, the method does not (allow)
    ├── UnauthorizedError            no valid token of the task layer     (challenge)
    ├── DeniedError                  authorisation said no                (code, reason)
    ├── ForbiddenError               refused before anyone was asked: origin, host, socket user
    ├── ThrottledError               too many failures from there         (retry_after_s)
    ├── BusyError                    no room for this now                 (retry_after_s)
    ├── ConflictError                it clashes with what exists
    │   ├── LockedError              another run holds script and host    (conflicts)
    │   └── SpentKeyError            what its key began is purged         (reqid)
    ├── PreconditionError            it has changed since it was read
    ├── RangeError                   there is no such part of it          (size_bytes)
    ├── ProtocolError                bytes that are not the HTTP we speak (status)
    ├── PeerError                    a peer answered wrongly or not at all (kind)
    ├── CertificateError             a certificate, key or CSR is refused
    ├── PairingError                 a pairing exchange failed            (reason)
    ├── StorageError                 state could not be read or written   (path)
    ├── ProgramError                 a program could not be run           (program)
    └── ServiceError                 a part of ours that must run does not
        └── LostCommandError         what became of a command is not known (pid, started)

Core code raises these and knows no HTTP status and no exit code: `api/errors.py` and
`cli/errors.py` map them. Messages are lower case, name the layer and what was expected, and never
hold a secret.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class CtrlExecError(Exception):
    """Root of all our errors; its text is the one-line detail a user may see."""


class InvalidInputError(CtrlExecError):
    """What was asked is malformed; `field` names the place, the text what was expected."""

    def __init__(self, detail: str, *, field: str = "") -> None:
        super().__init__(detail)
        self.field = field


class InvalidNameError(InvalidInputError):
    """A name does not match its pattern."""


class UsageError(InvalidInputError):
    """A command line is wrong: a word or an option is missing, unknown or has a bad value."""


class MessageError(InvalidInputError):
    """A body or a wire message does not decode."""


class InvalidFieldsError(InvalidInputError):
    """Keys of an object are wrong; `fields` says of each what was expected."""

    def __init__(self, detail: str, fields: dict[str, str] | None = None) -> None:
        self.fields = fields or {}
        super().__init__(detail, field=next(iter(self.fields), ""))


class PayloadError(InvalidInputError):
    """One thing is too large to be passed on."""


class ConfigError(CtrlExecError):
    """A configuration file is wrong at a line."""

    def __init__(self, detail: str, *, path: str = "", line: int = 0) -> None:
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        super().__init__(where + detail)
        self.detail = detail
        self.path = path
        self.line = line


class NotFoundError(CtrlExecError):
    """What was named does not exist, or not for this caller."""


class UnknownAgentError(NotFoundError):
    """Hosts were named that are not registered; all of them are listed."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        super().__init__("not registered: " + ", ".join(self.names))


class UnknownRunError(NotFoundError):
    """There is no record of that run that this caller may see."""

    def __init__(self, reqid: str) -> None:
        self.reqid = reqid
        super().__init__(f"no result for reqid {reqid}")


class UnknownPairingError(NotFoundError):
    """There is no such pairing request waiting."""

    def __init__(self, request: str) -> None:
        self.request = request
        super().__init__(f"no pairing request {request} is waiting")


class MethodNotAllowedError(CtrlExecError):
    """The path exists but not with this method; `allow` lists those it has."""

    def __init__(self, method: str, path: str, allow: Iterable[str]) -> None:
        self.allow = tuple(allow)
        super().__init__(f"{method} is not available on {path}; use {', '.join(self.allow)}")


class UnauthorizedError(CtrlExecError):
    """There is no valid token of the task layer; `challenge` is an error word of RFC 6750 §3.1, or empty."""

    def __init__(self, detail: str, *, challenge: str = "") -> None:
        super().__init__(detail)
        self.challenge = challenge


class DeniedError(CtrlExecError):
    """Authorisation said no. Codes: 1 denied, 2 bad credentials, 3 insufficient privilege."""

    def __init__(self, code: int, reason: str, detail: str = "") -> None:
        self.code = code
        self.reason = reason
        super().__init__(detail or reason)


class ForbiddenError(CtrlExecError):
    """Refused before anyone was asked: origin, host header or socket user."""


class ThrottledError(CtrlExecError):
    """Too many failures from there; try again after `retry_after_s` seconds."""

    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class BusyError(CtrlExecError):
    """There is no room for this now; try again after `retry_after_s` seconds."""

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class ConflictError(CtrlExecError):
    """It clashes with what exists already."""


class LockedError(ConflictError):
    """Another run holds the script on some of the hosts."""

    def __init__(self, script: str, conflicts: Iterable[str]) -> None:
        self.script = script
        self.conflicts = tuple(conflicts)
        super().__init__(f"{script} is already running on {', '.join(self.conflicts)}")


class PreconditionError(CtrlExecError):
    """It is no longer what the caller has read (If-Match)."""


class RangeError(CtrlExecError):
    """What was asked for a part of has no such part."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        super().__init__(f"it has {size_bytes} bytes")


class SpentKeyError(ConflictError):
    """An idempotency key began something whose record is purged; it is not begun again."""

    def __init__(self, reqid: str) -> None:
        self.reqid = reqid
        super().__init__(f"this Idempotency-Key began {reqid}, whose record is purged")


class ProtocolError(CtrlExecError):
    """Bytes that are not the HTTP we speak; `status` is what RFC 9110 calls the fault."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class PeerError(CtrlExecError):
    """A peer answered wrongly or not at all; `kind` is a word of `services.fanout.Failure`."""

    def __init__(self, detail: str, *, kind: str = "protocol") -> None:
        super().__init__(detail)
        self.kind = kind


class CertificateError(CtrlExecError):
    """A certificate, key or CSR is refused, and why."""


class PairingError(CtrlExecError):
    """A pairing exchange failed; the text is the reason for both sides."""


class StorageError(CtrlExecError):
    """State could not be read or written."""

    def __init__(self, detail: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {detail}" if path else detail)
        self.path = path


class ProgramError(CtrlExecError):
    """A program could not be run, or failed where it must not."""

    def __init__(self, detail: str, *, program: str = "") -> None:
        super().__init__(f"{program}: {detail}" if program else detail)
        self.program = program


class ServiceError(CtrlExecError):
    """A part of ours that must run does not; the text says how to start it."""


class LostCommandError(ServiceError):
    """What watched a command died: until its group is known to be gone, it may still run."""

    def __init__(self, detail: str, *, pid: int = 0, started: int = 0) -> None:
        self.pid = pid
        self.started = started
        super().__init__(detail)
