"""The wire between dispatcher and agent (port 7443) as values, and the codec for them.

Unknown keys of a message are ignored, because peers have other versions; a known key of the wrong
type is refused. A key whose value is None is not sent. Source: the endpoint table of the contract,
core.md §7.
"""

from __future__ import annotations

from ctrl_exec.common.errors import MessageError
from ctrl_exec.common.json_text import decoder, encoder
from ctrl_exec.common.names import check_reqid, check_script
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import fields, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")

FEATURES = ("async", "stream", "cancel", "timeout", "keepalive", "result", "base64", "secrets")
"""What an agent of this version can do beyond the plain protocol."""

MAX_ARGS = 1024
MAX_ARG_BYTES = 131_071  # the kernel's MAX_ARG_STRLEN less the NUL. Source: execve(2)
MAX_ARGS_BYTES = 512 * 1024
ENCODINGS = ("utf-8", "base64")
MAX_TIMEOUT_S = 7 * 86_400
MAX_SECRETS = 256
MAX_SECRETS_BYTES = 256 * 1024
_RTT_DIGITS = 12  # more are no time that anything took

STATES = (
    "pending", "accepted", "running",
    "ok", "failed", "timeout", "unreachable", "refused", "busy", "lost", "cancelled",
)  # fmt: skip
FINAL_STATES = frozenset(STATES[3:])


@value
class RunCommand:
    """`POST /run`: what the agent is to run, for whom, under which request id."""

    script: str
    args: tuple[str, ...] = ()
    reqid: str = ""
    username: str = ""
    token: str = ""
    is_async: bool | None = None
    timeout: int | None = None
    encoding: str | None = None
    stream: bool | None = None
    secrets: Mapping[str, str] | None = None

    def __repr__(self) -> str:  # no token and no secret may get into a log or a traceback by it
        return f"RunCommand(script={self.script!r}, reqid={self.reqid!r})"


@value
class HostResult:
    """What became of a run on one host, as a record keeps it and an answer shows it.

    `stdout` and `stderr` are text in the run's encoding (base64 text when that was asked for);
    `exit` is None while there is none yet; `truncated` counts the bytes dropped from (stdout, stderr).
    `note` is a word for the reader that is no error.
    """

    host: str
    script: str
    state: str
    reqid: str = ""
    exit: int | None = None
    stdout: str = ""
    stderr: str = ""
    rtt_ms: int = 0
    error: str = ""
    truncated: tuple[int, int] = (0, 0)
    note: str = ""

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to come from this host."""
        return self.state in FINAL_STATES

    def as_json(self) -> dict[str, Any]:
        """`{host, script, exit, stdout, stderr, rtt, reqid, state}`; `error`, `truncated`, `note` if any."""
        shown: dict[str, Any] = {
            "host": self.host,
            "script": self.script,
            "exit": self.exit if self.exit is not None else -1,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "rtt": f"{self.rtt_ms}ms",
            "reqid": self.reqid,
            "state": self.state,
        }
        if self.error:
            shown["error"] = self.error
        if any(self.truncated):
            shown["truncated"] = {"stdout": self.truncated[0], "stderr": self.truncated[1]}
        if self.note:
            shown["note"] = self.note
        return shown

    @classmethod
    def from_json(cls, document: Any) -> HostResult:
        """The result from its JSON form. Raises: MessageError."""
        found = read_object(document, "result")
        dropped = read_object(found.get("truncated") or {}, "truncated")
        rtt = text_of(found, "rtt", "0ms").removesuffix("ms")
        state = text_of(found, "state")
        if state not in STATES:
            raise MessageError(f"state: {state[:40]!a} is none of {', '.join(STATES)}", field="state")
        return cls(
            host=text_of(found, "host"),
            script=text_of(found, "script", ""),
            state=state,
            reqid=text_of(found, "reqid", ""),
            exit=integer_of(found, "exit", -1),
            stdout=text_of(found, "stdout", ""),
            stderr=text_of(found, "stderr", ""),
            rtt_ms=int(rtt) if rtt.isascii() and rtt.isdigit() and len(rtt) < _RTT_DIGITS else 0,
            error=text_of(found, "error", ""),
            truncated=(integer_of(dropped, "stdout", 0), integer_of(dropped, "stderr", 0)),
            note=text_of(found, "note", ""),
        )


def decode_run(body: bytes) -> RunCommand:
    """The command in the body of `POST /run` on the agent.

    Raises: MessageError or InvalidNameError naming the field.
    """
    found = parse_object(body)
    return RunCommand(
        script=check_script(found.get("script")),
        args=arguments_of(found),
        reqid=check_reqid(found.get("reqid")),
        username=text_of(found, "username", ""),
        token=text_of(found, "token", ""),
        is_async=flag_of(found, "async"),
        timeout=bounded_of(found, "timeout", 1, MAX_TIMEOUT_S),
        encoding=encoding_of(found),
        stream=flag_of(found, "stream"),
        secrets=secrets_of(found),
    )


def encode_run(command: RunCommand) -> bytes:
    """The body of `POST /run` for the agent."""
    shown = {
        ("async" if each.name == "is_async" else each.name): getattr(command, each.name)
        for each in fields(command)
    }
    return encode(shown, is_compact=True)


def encode(document: dict[str, Any], *, is_compact: bool = False) -> bytes:
    """JSON of the document without its None values, in ASCII; with `is_compact` in UTF-8.

    An escape takes up to three times the bytes of its letter: the longest arguments that are allowed
    would exceed what an agent reads. Lone surrogates, which JSON can carry and UTF-8 can't, stay escapes.
    """
    kept = {key: each for key, each in document.items() if each is not None}
    if is_compact:
        with suppress(UnicodeEncodeError):
            return _encoded_compactly(kept).encode("utf-8")
    return _encoded(kept).encode("ascii")


def parse_object(body: bytes, what: str = "body") -> dict[str, Any]:
    """The JSON object in the bytes.

    Raises: MessageError for anything else, also for a key given twice, NaN, or bottomless nesting.
    """
    try:
        return read_object(_decoded(body.decode("utf-8")), what)
    except UnicodeDecodeError as error:
        raise MessageError(f"{what}: not UTF-8 at byte {error.start}", field=what) from error
    except RecursionError as error:
        raise MessageError(f"{what}: nested too deeply", field=what) from error
    except ValueError as error:
        raise MessageError(f"{what}: not JSON ({error})", field=what) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:80]!a} is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_encoded = encoder(separators=(",", ":"))
_encoded_compactly = encoder(separators=(",", ":"), ensure_ascii=False)
_decoded = decoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def read_object(document: Any, what: str) -> dict[str, Any]:
    """The document if it is an object. Raises: MessageError."""
    if not isinstance(document, dict):
        raise MessageError(f"{what}: expected a JSON object", field=what)
    return document


def _typed(found: dict[str, Any], key: str, is_right: Callable[[Any], bool], expected: str) -> Any:
    given = found.get(key)
    if given is not None and not is_right(given):
        raise MessageError(f"{key}: expected {expected}", field=key)
    return given


def text_of(found: dict[str, Any], key: str, default: str | None = None) -> str:
    """The text at the key, or the default; without one it is required. Raises: MessageError."""
    given = found.get(key)
    if isinstance(given, str):
        return given
    if given is not None:
        raise MessageError(f"{key}: expected a string", field=key)
    if default is None:
        raise MessageError(f"{key}: required", field=key)
    return default


def integer_of(found: dict[str, Any], key: str, default: int) -> int:
    """The whole number at the key, or the default. Raises: MessageError."""
    given = found.get(key)
    if given is None:
        return default
    if not isinstance(given, int) or isinstance(given, bool):
        raise MessageError(f"{key}: expected a whole number", field=key)
    return given


def bounded_of(found: dict[str, Any], key: str, least: int, most: int) -> int | None:
    """The whole number at the key within its bounds, None without the key. Raises: MessageError."""

    def is_right(each: Any) -> bool:
        return isinstance(each, int) and not isinstance(each, bool) and least <= each <= most

    given = _typed(found, key, is_right, f"a whole number from {least} to {most}")
    return None if given is None else int(given)


def flag_of(found: dict[str, Any], key: str) -> bool | None:
    """The boolean at the key, None without it. Raises: MessageError."""
    given = _typed(found, key, lambda each: isinstance(each, bool), "true or false")
    return None if given is None else bool(given)


def texts_of(found: dict[str, Any], key: str) -> tuple[str, ...] | None:
    """The array of strings at the key, None without it. Raises: MessageError."""

    def is_right(each: Any) -> bool:
        return isinstance(each, list) and all(isinstance(part, str) for part in each)

    given = _typed(found, key, is_right, "an array of strings")
    return None if given is None else tuple(given)


def arguments_of(found: dict[str, Any]) -> tuple[str, ...]:
    """The `args` of a run, within the limits that execve(2) and good sense set. Raises: MessageError."""
    args = texts_of(found, "args") or ()
    if len(args) > MAX_ARGS:
        raise MessageError(f"args: {len(args)} arguments, at most {MAX_ARGS}", field="args")
    total = 0
    for place, arg in enumerate(args):
        try:
            size = len(arg.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise MessageError(f"args[{place}]: not encodable as UTF-8", field="args") from error
        if "\0" in arg:
            raise MessageError(f"args[{place}]: holds a NUL character", field="args")
        if size > MAX_ARG_BYTES:
            raise MessageError(f"args[{place}]: {size} bytes, at most {MAX_ARG_BYTES}", field="args")
        total += size
    if total > MAX_ARGS_BYTES:
        raise MessageError(f"args: {total} bytes in all, at most {MAX_ARGS_BYTES}", field="args")
    return args


def secrets_of(found: dict[str, Any]) -> dict[str, str] | None:
    """The `secrets` of a run, None without them. Raises: MessageError, which repeats none of them."""
    given = _typed(
        found,
        "secrets",
        lambda each: isinstance(each, dict) and all(isinstance(text, str) for text in each.values()),
        "an object of strings",
    )
    if given is None:
        return None
    if len(given) > MAX_SECRETS:
        raise MessageError(f"secrets: {len(given)} of them, at most {MAX_SECRETS}", field="secrets")
    size = sum(
        len(name.encode("utf-8", "replace")) + len(text.encode("utf-8", "replace"))
        for name, text in given.items()
    )
    if size > MAX_SECRETS_BYTES:
        raise MessageError(f"secrets: {size} bytes in all, at most {MAX_SECRETS_BYTES}", field="secrets")
    return dict(given)


def encoding_of(found: dict[str, Any]) -> str | None:
    """The `encoding` of a run, None without it. Raises: MessageError."""
    given = _typed(found, "encoding", lambda each: each in ENCODINGS, f"one of {', '.join(ENCODINGS)}")
    return None if given is None else str(given)


def output_text(output: bytes, encoding: str | None) -> str:
    """Output bytes as JSON carries them: UTF-8 with invalid bytes replaced, or base64."""
    if encoding == "base64":
        import binascii

        return binascii.b2a_base64(output, newline=False).decode("ascii")
    return output.decode("utf-8", "replace")
