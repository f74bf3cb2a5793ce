"""Which exit code, class word and next step an error gets at the prompt.

Owns the one table from error class to exit code (core §10); a class that is not listed takes the
row of its nearest parent, and a test walks the whole tree. Must not know any command.
"""

from __future__ import annotations

from ctrl_exec.common import errors

OK = 0
FAILED = 1
USAGE = 2
DENIED = 3
LOCKED = 4
NOBODY = 5
TIMED_OUT = 124
INTERRUPTED = 130

# class: (exit code, the word of the JSON document, what to do next)
TABLE: dict[type[errors.CtrlExecError], tuple[int, str, str]] = {
    errors.CtrlExecError: (FAILED, "failed", ""),
    errors.InvalidInputError: (USAGE, "bad request", ""),
    errors.UsageError: (USAGE, "usage", "see `ctrl-exec {command} --help`"),
    errors.InvalidNameError: (USAGE, "bad request", ""),
    errors.MessageError: (USAGE, "bad request", ""),
    errors.InvalidFieldsError: (USAGE, "bad request", ""),
    errors.PayloadError: (USAGE, "payload too large", ""),
    errors.ConfigError: (
        USAGE,
        "configuration",
        "`ctrl-exec check-config` checks the file without starting anything",
    ),
    errors.NotFoundError: (FAILED, "not found", ""),
    errors.UnknownAgentError: (FAILED, "unknown agent", "`ctrl-exec list-agents` shows the registered names"),
    errors.UnknownRunError: (FAILED, "not found", "records are kept for run_retention after a run has ended"),
    errors.UnknownPairingError: (FAILED, "not found", "`ctrl-exec list-requests` shows the waiting requests"),
    errors.MethodNotAllowedError: (FAILED, "method not allowed", ""),
    errors.UnauthorizedError: (DENIED, "unauthorized", ""),
    errors.DeniedError: (
        DENIED,
        "denied",
        "the auth hook decides; it reads ENVEXEC_TOKEN, --token-file and --username",
    ),
    errors.ForbiddenError: (DENIED, "forbidden", ""),
    errors.ThrottledError: (FAILED, "too many requests", "wait a minute and try again"),
    errors.BusyError: (FAILED, "service unavailable", "try again in a moment"),
    errors.ConflictError: (FAILED, "conflict", ""),
    errors.SpentKeyError: (FAILED, "conflict", ""),
    errors.LockedError: (
        LOCKED,
        "locked",
        "`ctrl-exec list-locks` shows what is running; try again when it has ended",
    ),
    errors.PreconditionError: (FAILED, "precondition failed", "read it again and repeat the change"),
    errors.RangeError: (FAILED, "range not satisfiable", ""),
    errors.ProtocolError: (FAILED, "protocol", ""),
    errors.PeerError: (FAILED, "peer", ""),
    errors.CertificateError: (FAILED, "certificate", "`ctrl-exec doctor` checks keys and certificates"),
    errors.PairingError: (FAILED, "pairing", ""),
    errors.StorageError: (FAILED, "storage", "`ctrl-exec doctor` checks directories and permissions"),
    errors.ProgramError: (FAILED, "program", ""),
    errors.ServiceError: (FAILED, "service", ""),
    errors.LostCommandError: (FAILED, "service", ""),
}


def row(kind: type[errors.CtrlExecError]) -> tuple[int, str, str]:
    """Give exit code, word and next step of an error class, its own or its nearest parent's."""
    for parent in kind.__mro__:
        found = TABLE.get(parent)
        if found is not None:
            return found
    return TABLE[errors.CtrlExecError]


def exit_code(error: errors.CtrlExecError) -> int:
    """Give the exit code of an error."""
    return row(type(error))[0]


def next_step(error: errors.CtrlExecError, command: str) -> str:
    """Say what the user can do about an error, or give an empty text."""
    if isinstance(error, errors.ConfigError):
        from ctrl_exec.common.settings import NO_SUCH_FILE

        if error.detail == NO_SUCH_FILE:
            return "`make install-system` makes the system's; --config FILE or CTRL_EXEC_CONFIG names another"
    return row(type(error))[2].replace("{command} ", f"{command} " if command else "")


def as_document(error: errors.CtrlExecError) -> dict[str, object]:
    """Give the JSON document of an error: `{"ok": false, "error": class, "detail": text, …}`.

    Denials carry `code` 1, 2 or 3 and the hook's reason as `error`; a locked script carries
    `code` 4 and `conflicts`; unknown agents are listed in `agents`.
    """
    document: dict[str, object] = {"ok": False, "error": row(type(error))[1], "detail": str(error)}
    if isinstance(error, errors.DeniedError):
        document |= {"error": error.reason, "code": error.code}
    elif isinstance(error, errors.LockedError):
        document |= {"code": 4, "conflicts": list(error.conflicts)}
    elif isinstance(error, errors.UnknownAgentError):
        document |= {"agents": list(error.names)}
    elif isinstance(error, errors.ConfigError):
        document |= {"path": error.path, "line": error.line}
    return document
