"""What a program tells its server: where to listen, what to let in, what to call when.

Owns no behaviour; `http.ForkingServer` reads it.
"""

from __future__ import annotations

from ctrl_exec.common.answer import refusal
from ctrl_exec.common.conversation import Timing
from ctrl_exec.common.parser import ParserLimits
from ctrl_exec.common.routing import json_response
from ctrl_exec.common.value import field, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.common.child import Child
    from ctrl_exec.common.conversation import Exchange
    from ctrl_exec.common.routing import Request, Response

    Application = Callable[[Request, Child], Response | None]


def _nothing(*_: object) -> None:
    """The hook nobody set."""


def _admit_all(_remote_ip: str) -> bool:
    return True


@value
class ServerSettings:
    """Where a server listens and what it lets in.

    `max_per_ip` is for one address, 0 for no such limit; loopback and the Unix socket are exempt.
    `keepalive_share_percent`: with more than this share of the children alive, none is kept alive.
    """

    addresses: tuple[tuple[str, int], ...] = ()
    unix_socket: str = ""
    unix_group: str = ""
    backlog: int = 1024
    max_children: int = 64
    max_long: int = 48
    max_per_ip: int = 0
    max_waiting: int = 1024
    keepalive_share_percent: int = 75
    drain_s: float = 30
    drain_grace_s: float = 5
    counter_count: int = 0
    log_prefix: str = ""
    limits: ParserLimits = field(default_factory=ParserLimits)
    timing: Timing = field(default_factory=Timing)


def _rehearse_answer(request: Request, _child: Child) -> Response:
    return json_response(200, {"ok": True, "path": request.path, "bytes": len(request.body)})


_SIMPLE = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:7445\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n"
_WITH_BODY = (
    b"POST /run?a=%41 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
)


@value
class Understudy:
    """What answers and takes note in the rehearsal before the first fork, without any effect outside.

    `requests` are what is asked, each a whole request; `application` and `note` should run the code that
    the real ones run.
    """

    application: Application = _rehearse_answer
    note: Callable[[Child, Exchange], None] = _nothing
    requests: tuple[bytes, ...] = (_SIMPLE, _WITH_BODY)


@value
class ServerHooks:
    """What the program behind a server has to say at certain moments.

    In the parent: `admit(remote_ip)` before anything else; `on_ready(addresses)` once it listens;
    `on_reload()` at SIGHUP gives the new application and settings (addresses are kept as they are),
    and raises a CtrlExecError to keep the old; `on_child_exit(remote_ip, status)`, a signal's number
    negative; `on_silent_end(remote_ip)` for a connection that never said a word; `on_sigchld()` when a
    child of the program's own may have ended. `parent_fds()` are descriptors
    that children close, `understudy()` plays the program's part before the first fork. In a child:
    `refuse(status, detail)` makes the answer to what is no request, `note(child, exchange)` logs and
    counts, `on_tls_failure(remote_ip, reason)`; `meanwhile()` is called when it is the peer's turn in the
    TLS handshake, for what may as well be done before the request is there.
    """

    admit: Callable[[str], bool] = _admit_all
    on_ready: Callable[[tuple[str, ...]], None] = _nothing
    on_reload: Callable[[], tuple[Application, ServerSettings]] | None = None
    on_child_exit: Callable[[str, int], None] = _nothing
    on_silent_end: Callable[[str], None] = _nothing
    on_sigchld: Callable[[], None] = _nothing
    parent_fds: Callable[[], tuple[int, ...]] = tuple
    refuse: Callable[[int, str], Response] = refusal
    note: Callable[[Child, Exchange], None] = _nothing
    on_tls_failure: Callable[[str, str], None] = _nothing
    understudy: Callable[[], Understudy] = Understudy
    meanwhile: Callable[[], None] | None = None
