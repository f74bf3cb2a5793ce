"""Memory of the API's parent over many requests."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.row import Group, Row, measured
from bench.series import Series, at_most
from bench.timing import MIB, private_bytes, rss_bytes

if TYPE_CHECKING:
    from bench.session import Session

_LONGEST_S = 100  # on a slow or busy machine fewer requests have to do; the row says how many


def measure(session: Session) -> Iterable[Row]:
    """Its anonymous memory in the beginning (after a warm-up) and along the way."""
    api = session.deployment.api("memory")
    total = session.sizes.requests
    session.generator.run(api.port, 8, seconds=600, most=max(500, total // 50), allows_failures=True)
    before = private_bytes(api.daemon.pid)
    points = [(0.0, before / MIB)]
    done, start = 0, time.monotonic()
    while done < total and time.monotonic() - start < _LONGEST_S:
        load = session.generator.run(api.port, 8, seconds=60, most=total // 20, allows_failures=True)
        done += load.requests + load.failed
        points.append((float(done), private_bytes(api.daemon.pid) / MIB))
        session.say(f"memory: {done} requests, {points[-1][1]:.2f} MiB")
    session.curves["api-memory"] = {"API's parent": points}
    grown = Series((max(abs(mib - points[0][1]) for _, mib in points),))
    yield measured(
        "memory-api",
        f"API's parent over {done:,} requests: largest change of its own memory",
        ("change MiB", grown),
        "MiB",
        at_most(1.0),
        note=f"{points[-1][1]:.1f} MiB of its own, RSS {rss_bytes(api.daemon.pid) / MIB:.1f} MiB",
    )
    session.deployment.end_api("memory")


GROUP = Group("memory", "memory of the API's parent over 100,000 requests", measure)
