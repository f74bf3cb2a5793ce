"""A few requests carried in a server's parent before it forks, for the sake of its children's memory.

The interpreter writes into the code it runs until it has specialised it (PEP 659), and into its cache
of attributes whenever it looks one up for the first time. A child that does either copies those pages,
and the next child again; what the parent has rehearsed is done already and stays shared. Owns the
stage: connections and a row of its own. What is carried over them is the caller's.
"""

from __future__ import annotations

import socket

from ctrl_exec.common.slots import Slots
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec.common.server_settings import Understudy

_ROUNDS = 24


def rehearse(
    understudy: Understudy,
    counter_count: int,
    perform: Callable[[Slots, socket.socket, object, Understudy], None],
) -> None:
    """Have `perform` serve each request of the understudy some times, over loopback, in this process."""
    slots = Slots(2, counter_count)
    with suppress(OSError), socket.socket() as stage:
        stage.bind(("127.0.0.1", 0))
        stage.listen(1)
        for raw in understudy.requests * _ROUNDS:
            with socket.socket() as client:
                client.connect(stage.getsockname())
                ours, address = stage.accept()
                ours.setblocking(False)
                client.sendall(raw)
                client.shutdown(socket.SHUT_WR)
                perform(slots, ours, address, understudy)
    slots.close()
