"""A few requests carried in a server's parent before it forks, for the sake of its children's memory.

The interpreter writes into the code it runs until it has specialised it (PEP 659). A child that runs
it for the first time copies those pages, every child again; what the parent has rehearsed is
specialised already and stays shared. Owns the rehearsal; knows no application.
"""

from __future__ import annotations

import socket

from ctrl_exec.common.answer import refusal
from ctrl_exec.common.connection import Connection
from ctrl_exec.common.conversation import Conversation, Exchange, Parts, Timing
from ctrl_exec.common.parser import ParserLimits
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.routing import Request

_ROUNDS = 24
_REQUESTS = (
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:7445\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n",
    b"POST /run?a=%41 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
)


class _Understudy:
    """Stands in for the child."""

    retire_fd = -1

    def is_idle(self) -> None:
        """Not shown to anyone."""

    def is_working(self) -> None:
        """Not shown to anyone."""

    def may_keep_alive(self) -> bool:
        """One request a rehearsal."""
        return False


def _answer(request: Request) -> Response:
    return json_response(200, {"ok": True, "path": request.path, "bytes": len(request.body)})


def _note(_exchange: Exchange) -> None:
    """Nobody is told."""


def rehearse() -> None:
    """Carry the requests over socket pairs, all in this process."""
    parts = Parts(_answer, refusal, _note, ParserLimits(), Timing())
    for _ in range(_ROUNDS):
        for raw in _REQUESTS:
            ours, theirs = socket.socketpair()
            with theirs:
                theirs.sendall(raw)
                connection = Connection(ours)
                Conversation(connection, _Understudy(), parts).carry()
                connection.finish()
