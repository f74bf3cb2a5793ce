"""The seam between those who ask agents something and what carries the bytes.

Owns the words of that conversation: a `Call` is one request to one agent, an `Answer` its outcome,
a `Transport` turns many of the one into as many of the other. It must not know what is asked.
"""

from __future__ import annotations

from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Literal, Protocol

    from ctrl_exec.common.certificate import Certificate
    from ctrl_exec.services.loop import Loop

    FailureKind = Literal["unreachable", "timeout", "refused", "lost", "too large", "protocol"]
else:
    Protocol = object


@value
class Call:
    """One whole HTTP request for one agent.

    `key` comes back in the answer. `host` is a name or an IP literal. `fingerprint` is the key the
    peer must show before a byte of the request leaves; None takes any certificate of the CA.
    `read_timeout_s` is patience with silence; `deadline` is a moment of `time.monotonic()` by which
    all must be over. Of a call that `streams`, the body of a 200 is passed on as it comes, up to
    `stream_limit_bytes`, and `limit_bytes` bounds what is held. A peer whose key is among the `revoked`,
    or the `foreign` ones (known to be other agents'), is refused. The answer tells the peer's certificate
    only where the call `wants_certificate`.
    """

    key: str
    host: str
    port: int
    request: bytes
    fingerprint: str | None = None
    limit_bytes: int = 1 << 20
    read_timeout_s: float = 60.0
    deadline: float | None = None
    revoked: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    streams: bool = False
    stream_limit_bytes: int = 1 << 34
    wants_certificate: bool = True


@value
class Part:
    """A piece of the body of a call that streams, with whatever ends the network gave it."""

    key: str
    chunk: bytes


@value
class Failure:
    """Why there is no answer.

    `kind` is one of: `unreachable` (no connection came about), `refused` (one of the two sides does
    not trust the other), `timeout` (silence), `lost` (the connection broke, or who carried it died),
    `too large`, `protocol` (what came is not HTTP). `sent` tells whether the request may have
    reached the agent: where it is False, asking again is safe.
    """

    kind: FailureKind
    reason: str
    sent: bool = False


@value
class Answer:
    """What became of a call: a status with its body, or a failure.

    `rtt_s` runs from the first packet to the last byte. `certificate` is the peer's, when the
    handshake got that far. Of a call that streams, a 200 has no body: it came in parts; but one of a
    single line, of which nothing was passed on before it ended, is a body like any other.
    """

    key: str
    status: int | None = None
    body: bytes = b""
    rtt_s: float = 0.0
    certificate: Certificate | None = None
    failure: Failure | None = None


@value
class Interrupt:
    """A wish to stop early: `is_set` is asked when one of the descriptors becomes readable.

    With `poll_s` also that often, for wishes that no descriptor tells of.
    `on_unsent` is told the keys of the calls of which nothing had left when the interrupt came: those
    may be made again. Of the others without an answer nobody knows.
    """

    fds: tuple[int, ...]
    is_set: Callable[[], bool]
    on_unsent: Callable[[tuple[str, ...]], None] | None = None
    poll_s: float | None = None

    def wait_s(self, longest_s: float) -> float:
        """How long to wait for news before asking."""
        return longest_s if self.poll_s is None else min(longest_s, self.poll_s)


class Transport(Protocol):
    """Carries calls to agents."""

    def send(self, calls: Sequence[Call], interrupt: Interrupt | None = None) -> Iterator[Answer | Part]:
        """The answers as they come, one a call; fewer only when the interrupt ended it early.

        Before the answer to a call that streams come its parts. Whoever does not take them holds up
        those who send them, so no more than a bounded part of them is ever held.

        Closing the iterator drops what is under way.
        """
        ...  # noqa: PIE790 - pyright takes a docstring alone for a body that returns None

    def new_loop(self, calls: Sequence[tuple[int, Call]] = (), *, room: int = 0) -> Loop:
        """A loop in this process for the owner to turn and close, with room for that many calls at once.

        Raises: CertificateError.
        """
        ...  # noqa: PIE790 - as above
