"""An order taken as far as where its script would start: what warming up is for a runner.

Most of what a short run costs a child is its memory: each page it writes to for the first time, if only
to count a reference, is copied. While the dispatcher computes its half of the TLS handshake the child has
nothing to do. There it goes the way of an order once, and when the order has come the pages are its own.
The server has gone it some times before the first fork, so that the interpreter has nothing more to write
into the code (`ctrl_exec.common.rehearsal`).

Owns that order. Nothing has an effect: its script is said to run already, and the log goes nowhere.
"""

from __future__ import annotations

from ctrl_exec.common.certificate import pem_to_der
from ctrl_exec.common.conversation import Conversation, Timing
from ctrl_exec.common.conversation import Parts as Manners
from ctrl_exec.common.files import read_bounded
from ctrl_exec.common.log import Log
from ctrl_exec.common.parser import ParserLimits
from ctrl_exec.common.routing import PeerIdentity
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import replace
from ctrl_exec_agent.allowlist import Allowlist, Script
from ctrl_exec_agent.handlers import Peer
from ctrl_exec_agent.spool import Spool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.common.conversation import Exchange
    from ctrl_exec.common.routing import Request, Response
    from ctrl_exec_agent.generation import Parts
    from ctrl_exec_agent.server import Application

ROUNDS = 16
"""How often the server does it: the interpreter leaves code alone that it has run some ten times."""
_CERTIFICATE_BYTES = 64 * 1024
_SCRIPT = "true"
_BODY = b'{"script":"true","args":["-a"],"reqid":"0123456789abcdef","username":"","token":""}'
_ORDER = (
    b"POST /run HTTP/1.1\r\nHost: agent\r\nUser-Agent: ctrl-exec/1\r\nAccept: application/json\r\n"
    b"Connection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(_BODY), _BODY)
)


class DryRun:
    """Calling it is one dry run with a generation of the configuration; it never fails."""

    def __init__(self, parts: Parts, make_application: Callable[[Parts], Application]) -> None:
        pem = read_bounded(parts.config.cert_path, _CERTIFICATE_BYTES, follow=True)
        # nobody trusts an agent's own certificate as a dispatcher's; to be judged it is as good as any
        self._peer = PeerIdentity(certificate=pem_to_der(pem.decode("ascii", "replace")))
        without_effect = replace(
            parts,
            allowlist=Allowlist({_SCRIPT: Script(_SCRIPT, "/nowhere")}),
            log=Log(parts.log.program, "stderr", parts.log.style, stream=_Nowhere()),  # type: ignore[arg-type]
            spool=_BusySpool(parts.spool.directory),
            hook=None,
        )
        self._application = make_application(without_effect)
        self._manners = Manners(self._answer, _refuse, _take_no_note, _pass_on, ParserLimits(), Timing())

    def __call__(self) -> None:
        with suppress(Exception):  # it is for speed alone
            self.go()

    def go(self) -> bytes:
        """The answer that nobody gets."""
        voice = _Voice(self._peer)
        Conversation(voice, _Attendant(), self._manners).carry()  # type: ignore[arg-type]
        return voice.answer

    def _answer(self, request: Request, _attendant: _Attendant) -> Response:
        self._application.judge(request)
        return self._application.obey(Peer("0", "0", request.remote_ip), request)


class _BusySpool(Spool):
    """One that has every script running already, so that no order gets any further."""

    def lock(self, _script: str) -> int | None:
        return None


class _Nowhere:
    """A stream that keeps nothing."""

    def write(self, _text: str) -> None:
        """As a file."""

    def flush(self) -> None:
        """As a file."""


class _Voice:
    """A connection on which the order has come; nobody hears the answer."""

    remote_ip = "127.0.0.1"
    remote_port = 0
    is_tls = True

    def __init__(self, peer: PeerIdentity) -> None:
        self._peer = peer
        self.answer = b""

    def peer(self) -> PeerIdentity:
        return self._peer

    def receive(self, _deadline: float, _limit_bytes: int) -> bytes:
        return _ORDER

    def send(self, payload: bytes, _deadline: float) -> None:
        self.answer = payload


class _Attendant:
    """The process of a conversation that nobody looks at."""

    retire_fd = -1
    has_waited = False

    def is_idle(self) -> None:
        """As a child."""

    def is_working(self) -> None:
        """As a child."""

    def may_keep_alive(self) -> bool:
        return False


def _refuse(status: int, detail: str) -> Response:
    raise AssertionError(f"{status} to an order without a fault: {detail}")


def _pass_on(_request: Request, error: Exception) -> Response:
    raise error


def _take_no_note(_attendant: _Attendant, _exchange: Exchange) -> None:
    """Nobody counts it."""
