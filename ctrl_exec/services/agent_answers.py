"""What an agent's answer means: bytes of the wire turned into results, whatever they hold.

Owns the states and words of core §6 and §4.3 for one host. Nothing here raises for what an agent
said: a lie is that host's result. Must not know how the answer came.
"""

from __future__ import annotations

import binascii

from ctrl_exec.common.clock import openssl_time, parse_iso_z, parse_openssl_time
from ctrl_exec.common.errors import MessageError
from ctrl_exec.common.json_text import end_of_string
from ctrl_exec.common.messages import HostResult, integer_of, parse_object, read_object, text_of, texts_of
from ctrl_exec.common.names import SCRIPT
from ctrl_exec.common.patterns import Pattern
from ctrl_exec.common.value import replace, value
from ctrl_exec.services.records import CancelOutcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec.common.messages import RunCommand
    from ctrl_exec.services.transport import Answer, Failure

TOO_OLD: dict[str, tuple[str, str]] = {
    "base64": ("failed", "agent too old for base64"),
    "secrets": ("refused", "agent too old for secrets"),
}
"""Host state and error of an agent that lacks a feature which a command needs."""
ALREADY_RUNNING = "script already running"
SAME_RUN = "a run with this reqid"  # the order had arrived before: what became of it is on record
TOO_OLD_TO_CANCEL = "agent too old to cancel"
UNKNOWN_RUN = "the agent has no record of this run"
TOO_LARGE = "answer too large"
CANCELLED = "cancelled"
KILLED = 126  # the exit code of what a signal ended
NO_RESULTS = "the agent keeps no records of runs"

_STATE_OF_FAILURE = {
    "unreachable": "unreachable",
    "refused": "refused",
    "timeout": "timeout",
    "lost": "lost",
    "too large": "failed",
    "protocol": "failed",
}
_PLAIN_BYTES = 1 << 20
_OUTLINE_BYTES = 64 * 1024
_MAX_SCRIPTS = 10_000
_MAX_TAGS = 256
_SHOWN_CHARS = 500
_LONGEST_MS = 366 * 86_400_000
_INTEGER = Pattern(r"-?[0-9]{1,9}")


def needed_features(command: RunCommand) -> tuple[str, ...]:
    """What an agent must be able to do, lest the command be worth nothing or tell a secret."""
    wanted = (("base64", command.encoding == "base64"), ("secrets", bool(command.secrets)))
    return tuple(feature for feature, is_needed in wanted if is_needed)


@value
class Reply:
    """One agent's answer, decoded: a document with its HTTP status, or a state and error in its place.

    `state` is `ok` when there is a document, else one of the failing host states. `sent` tells
    whether the request may have reached the agent.
    """

    host: str
    state: str
    rtt_ms: int = 0
    status: int = 0
    document: dict[str, Any] | None = None
    error: str = ""
    sent: bool = False
    certificate: Certificate | None = None


@value
class PingResult:
    """Whether an agent answers. `state` is `ok` or a failing host state; `expiry` as openssl prints it."""

    host: str
    state: str
    rtt_ms: int = 0
    version: str = ""
    expiry: str = ""
    error: str = ""
    features: tuple[str, ...] = ()
    is_staged: bool = False
    certificate: Certificate | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it answered as it should."""
        return self.state == "ok"

    def as_json(self) -> dict[str, Any]:
        """`{host, status: "ok", rtt, expiry, version}` or `{host, status: "error", rtt, error}`."""
        shown: dict[str, Any] = {
            "host": self.host,
            "status": "ok" if self.is_ok else "error",
            "rtt": f"{self.rtt_ms}ms",
        }
        if self.is_ok:
            return shown | {"expiry": self.expiry, "version": self.version}
        return shown | {"error": self.error, "state": self.state}


@value
class CapabilitiesReport:
    """What an agent may run.

    `scripts`: `{name, path, executable}` each, with `profile`, `schema`, `schema_version` where the
    agent gave them.
    """

    host: str
    state: str
    rtt_ms: int = 0
    version: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    scripts: tuple[dict[str, Any], ...] = ()
    error: str = ""
    features: tuple[str, ...] = ()
    certificate: Certificate | None = None

    @property
    def is_ok(self) -> bool:
        """Whether it answered as it should."""
        return self.state == "ok"

    def as_json(self) -> dict[str, Any]:
        """`{host, status: "ok", version, tags, scripts}` or `{host, status: "error", error}`."""
        if not self.is_ok:
            return {"host": self.host, "status": "error", "error": self.error, "state": self.state}
        return {
            "host": self.host,
            "status": "ok",
            "version": self.version,
            "tags": dict(self.tags),
            "scripts": list(self.scripts),
        }


# One answer


def read_reply(host: str, answer: Answer) -> Reply:
    """The answer decoded as far as every request's is."""
    rtt_ms = round(answer.rtt_s * 1000)
    about = Reply(host, "ok", rtt_ms=rtt_ms, certificate=answer.certificate, sent=True)
    if answer.failure is not None:
        return _from_failure(about, answer.failure)
    status = answer.status or 0
    try:
        document = _parse_answer(answer.body)
    except MessageError as error:
        # an error page in HTML says less than its status
        reason = f"invalid {error}" if 200 <= status < 300 else f"the agent answered {status}"
        return replace(about, state="failed", status=status, error=shown(reason))
    if status == 403:
        error_text = _word(document, "error") or "forbidden"
        return replace(about, state="refused", status=status, error=error_text)
    return replace(about, status=status, document=document)


def stream_reply(host: str, answer: Answer, document: dict[str, Any] | None) -> Reply:
    """The answer whose body came in parts, with its last line; without one the connection was cut."""
    reply = Reply(host, "ok", round(answer.rtt_s * 1000), 200, document, "", True, answer.certificate)
    if document is None:
        return replace(reply, state="lost", error="the output ended without a result")
    return reply


def _from_failure(about: Reply, failure: Failure) -> Reply:
    state = _STATE_OF_FAILURE[failure.kind]
    if state in ("timeout", "lost") and not failure.sent:
        state = "unreachable"
    reason = TOO_LARGE if failure.kind == "too large" else failure.reason
    return replace(about, state=state, error=shown(reason), sent=failure.sent)


def _parse_answer(body: bytes) -> dict[str, Any]:
    if len(body) > _PLAIN_BYTES:
        _check_outline(body)
    return parse_object(body, "answer")


def _check_outline(body: bytes) -> None:
    """Refuse a large body that is not large by its strings: a million empty arrays would fill memory.

    Raises: MessageError.
    """
    text = body.decode("utf-8", "replace")
    at = outside = 0
    while True:
        quote = text.find('"', at)
        outside += (quote if quote >= 0 else len(text)) - at
        if outside > _OUTLINE_BYTES:
            raise MessageError("answer: too much that is no output", field="answer")
        if quote < 0:
            return
        try:
            at = end_of_string(text, quote + 1)
        except ValueError as error:
            raise MessageError(f"answer: not JSON ({error})", field="answer") from error


def unexpected(reply: Reply) -> Reply:
    """The reply as a failure, for a status that has no meaning for the request."""
    word = _word(reply.document or {}, "error") or _word(reply.document or {}, "detail")
    reason = f"the agent answered {reply.status}" + (f": {word}" if word else "")
    return replace(reply, state="failed", document=None, error=shown(reason))


# Results of runs


def run_result(reply: Reply, script: str, reqid: str, encoding: str | None) -> HostResult:
    """The answer to `POST /run`.

    Where the request went out and no answer came the script may be running: state `running` after
    a read timeout, `lost` when the connection broke; the error says what we know.
    """
    result = HostResult(
        reply.host, script, reply.state, reqid=reqid, exit=-1, rtt_ms=reply.rtt_ms, error=reply.error
    )
    if reply.state == "timeout":
        return replace(result, state="running")
    if reply.document is None:
        return result
    if reply.status == 202:
        return replace(result, state="accepted", exit=None)
    if reply.status == 409:
        return replace(result, state="busy", error=_word(reply.document, "error") or ALREADY_RUNNING)
    if reply.status != 200:
        return replace(result, state="failed", error=unexpected(reply).error)
    return _outcome(result, reply.document, encoding)


def polled_result(reply: Reply, script: str, reqid: str, encoding: str | None) -> HostResult:
    """The answer to `GET /result/{reqid}`.

    State `running` as long as nothing is known for certain, with the reason in `error`; `lost` when
    the agent itself says that no more will come; `pending` when it has no record of the run, with an
    error only where it keeps no records at all.
    """
    result = HostResult(reply.host, script, "running", reqid=reqid, exit=-1, rtt_ms=reply.rtt_ms)
    document = reply.document
    if document is None:
        return replace(result, error=reply.error)
    status = _word(document, "status")
    if reply.status == 404:
        return replace(result, state="pending", exit=None, error="" if status == "unknown" else NO_RESULTS)
    if reply.status != 200 or status not in ("running", "done", "lost"):
        return replace(result, error=unexpected(reply).error)
    if status == "lost":
        return replace(result, state="lost", error="the agent restarted during the run")
    if status == "running":
        return replace(result, exit=None)
    return _outcome(replace(result, rtt_ms=max(reply.rtt_ms, _lasted_ms(document))), document, encoding)


def _lasted_ms(document: dict[str, Any]) -> int:
    """How long the script ran by the agent's clock; 0 where that is not said."""
    try:
        began, ended = (parse_iso_z(_word(document, key)) for key in ("started", "finished"))
    except MessageError:
        return 0
    return min(_LONGEST_MS, int((ended - began).total_seconds() * 1000))


def cancel_outcome(reply: Reply) -> CancelOutcome:
    """The answer to `POST /cancel`; an agent that does not know the path is an older one."""
    document = reply.document
    if document is None:
        return CancelOutcome(reply.host, False, reply.error or reply.state)
    if reply.status == 200 and isinstance(document.get("ended"), bool):
        return CancelOutcome(
            reply.host, document["ended"], "" if document["ended"] else "it has not ended yet"
        )
    if reply.status == 404 and _word(document, "status") == "unknown":
        return CancelOutcome(reply.host, False, UNKNOWN_RUN)
    if reply.status in (404, 405, 501):
        return CancelOutcome(reply.host, False, TOO_OLD_TO_CANCEL)
    return CancelOutcome(reply.host, False, unexpected(reply).error)


def _outcome(result: HostResult, document: dict[str, Any], encoding: str | None) -> HostResult:
    try:
        code = _exit_code(document)
        given = text_of(document, "encoding", "")
        stdout, stderr = (
            _output(text_of(document, key, ""), given, encoding) for key in ("stdout", "stderr")
        )
        dropped = read_object(document.get("truncated") or {}, "truncated")
        truncated = (max(0, integer_of(dropped, "stdout", 0)), max(0, integer_of(dropped, "stderr", 0)))
    except MessageError as error:
        return replace(result, state="failed", exit=-1, error=shown(f"invalid answer: {error}"))
    word = _word(document, "error")
    return replace(
        result,
        state=_state_of(code, word, is_timed_out=document.get("timed_out") is True),
        exit=code,
        stdout=stdout,
        stderr=stderr,
        error=word,
        truncated=truncated,
    )


def _exit_code(document: dict[str, Any]) -> int:
    given = document.get("exit")
    if isinstance(given, str) and _INTEGER.fullmatch(given):  # older peers write numbers as strings, too
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or not -1 <= given <= 255:
        raise MessageError("exit: expected a whole number from -1 to 255", field="exit")
    return given


def _state_of(code: int, word: str, *, is_timed_out: bool) -> str:
    if is_timed_out:
        return "timeout"
    if code == KILLED and word == CANCELLED:
        return "cancelled"
    if code == -1:
        if word.startswith(ALREADY_RUNNING):
            return "busy"
        if word.startswith(SAME_RUN):
            return "running"
        return "refused" if word.startswith(("script not permitted", "not authorised")) else "failed"
    return "ok" if code == 0 else "failed"


def _output(text: str, given: str, wanted: str | None) -> str:
    """The output in the encoding wanted, whatever it came in. Raises: MessageError."""
    if given == "base64":
        try:
            output = binascii.a2b_base64(text, strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise MessageError("stdout or stderr: not base64", field="stdout") from error
        return text if wanted == "base64" else output.decode("utf-8", "replace")
    if wanted == "base64":
        return binascii.b2a_base64(text.encode("utf-8", "replace"), newline=False).decode("ascii")
    return without_halves(text)


def without_halves(text: str) -> str:
    """The text without halves of surrogate pairs: JSON can carry them, no terminal and no file can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


# Ping and capabilities


def ping_result(reply: Reply) -> PingResult:
    """The answer to `POST /ping`."""
    reply = _require_ok(reply)
    result = PingResult(
        reply.host, reply.state, rtt_ms=reply.rtt_ms, error=reply.error, certificate=reply.certificate
    )
    if reply.document is None:
        return result
    return replace(
        result,
        version=_word(reply.document, "version"),
        expiry=_expiry(reply),
        features=_features(reply.document),
        is_staged=reply.document.get("staged") in (True, 1),
    )


def capabilities_report(reply: Reply) -> CapabilitiesReport:
    """The answer to `GET /capabilities`; entries that are no scripts are left out."""
    reply = _require_ok(reply)
    report = CapabilitiesReport(
        reply.host, reply.state, rtt_ms=reply.rtt_ms, error=reply.error, certificate=reply.certificate
    )
    document = reply.document
    if document is None:
        return report
    listed = document.get("scripts")
    found = [_script(each) for each in listed[:_MAX_SCRIPTS]] if isinstance(listed, list) else []
    return replace(
        report,
        version=_word(document, "version"),
        tags=_tags(document.get("tags")),
        scripts=tuple(each for each in found if each is not None),
        features=_features(document),
    )


def _require_ok(reply: Reply) -> Reply:
    if reply.document is None:
        return reply
    if reply.status != 200 or reply.document.get("status") != "ok":
        return unexpected(reply)
    return reply


def _expiry(reply: Reply) -> str:
    """When the certificate ends: the one the handshake proved, else what the agent says."""
    if reply.certificate is not None:
        return openssl_time(reply.certificate.not_after)
    try:
        return openssl_time(parse_openssl_time(_word(reply.document or {}, "expiry")))
    except MessageError:
        return ""


def _features(document: dict[str, Any]) -> tuple[str, ...]:
    try:
        return (texts_of(document, "features") or ())[:64]
    except MessageError:
        return ()


def _tags(given: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, dict):
        return ()
    pairs = [(shown(key), shown(each)) for key, each in given.items() if isinstance(each, str)]
    return tuple(sorted(pairs)[:_MAX_TAGS])


def _script(given: Any) -> dict[str, Any] | None:
    if not isinstance(given, dict):
        return None
    name = given.get("name")
    if not isinstance(name, str) or not SCRIPT.fullmatch(name):
        return None
    path = given.get("path")
    found: dict[str, Any] = {
        "name": name,
        "path": path[:4096] if isinstance(path, str) else "",
        "executable": given.get("executable") in (True, 1),  # older peers have no booleans
    }
    for key, kind in (("profile", str), ("schema", dict), ("schema_version", str)):
        if isinstance(given.get(key), kind):
            found[key] = given[key]
    return found


def _word(document: dict[str, Any], key: str) -> str:
    given = document.get(key)
    return shown(given) if isinstance(given, str) else ""


def shown(text: str) -> str:
    """What an agent wrote, short enough for a line and without what a terminal would obey."""
    short = text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
    return "".join(char if char.isprintable() else "?" for char in short)
