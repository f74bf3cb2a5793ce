"""Half a million executions: their list with every filter, and the API while most of them are purged."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.row import Group, Row, measured
from bench.series import Series, at_most, quantile
from bench.timing import MIB, ProbeError, run_program
from ctrl_exec.tasks.store import Store
from tests.support.history import DAYS, History, lay_down

if TYPE_CHECKING:
    from bench.session import Session

_KEPT_DAYS = 9  # of a month: seven of ten executions go
_MOST_MS = 100


class Client:
    """One who asks the API, each time on a connection of its own."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def time_ms(self, method: str, path: str, body: object = None) -> float:
        """How long the whole request takes. Raises: ProbeError unless it is answered well."""
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        took_ms = (time.perf_counter() - start) * 1e3
        if answer.status not in (200, 201):
            raise ProbeError(f"{method} {path}: {answer.status} {content[:200]!r}")
        return took_ms


def measure(session: Session) -> Iterable[Row]:
    """The lists, then purge and lists and starts at once."""
    count = 20_000 if session.is_quick else 500_000
    home = session.work / "executions"
    for each in (home, home / "etc", home / "state"):
        each.mkdir()
    conf = home / "etc" / "ctrl-exec.conf"
    conf.write_text(
        f"etc_dir = {home / 'etc'}\nstate_dir = {home / 'state'}\nlog_target = stderr\napi_port = 0\n"
    )
    database = home / "state" / "tasks.db"
    session.say(f"laying down {count} executions")
    with Store(str(database)) as store:
        history = lay_down(store, count, time.time_ns())
    os.sync()
    api = session.daemon(session.launcher("ctrl-exec-api", "--config", conf), "executions", announces=False)
    port = api.port()
    yield from _lists(session, history, port, count)
    yield from _purge(session, history, port, database)
    api.stop()


def _lists(session: Session, history: History, port: int, count: int) -> Iterable[Row]:
    """Every combination of filters, each as an administrator and as one who sees some projects."""
    clients = {name: Client(port, token) for name, token in history.tokens.items()}
    asked = [(name, query) for query in history.queries() for name in clients]
    for name, query in asked[:10]:
        clients[name].time_ms("GET", f"/api/v1/executions?{query}")
    tails, slowest = [], {}
    for _ in range(session.sizes.rounds):
        times = {
            (name, query): clients[name].time_ms("GET", f"/api/v1/executions?{query}")
            for name, query in asked
        }
        tails.append(quantile(list(times.values()), 0.95))
        slowest |= {each: [*slowest.get(each, []), took_ms] for each, took_ms in times.items()}
    middles = {each: Series(tuple(times)).median for each, times in slowest.items()}
    worst = max(middles, key=lambda each: middles[each])
    words = "&".join(part.partition("=")[0] for part in worst[1].split("&"))
    yield measured(
        "executions-list", f"list of {count:,} executions, every combination of filters: p95",
        ("p95 ms", Series(tuple(tails))), "ms", at_most(_MOST_MS), floor=session.floor,
        note=f"{len(asked)} of them, a connection each; the slowest median {middles[worst]:.0f} ms ({words})",
    )  # fmt: skip


def _purge(session: Session, history: History, port: int, database: Path) -> Iterable[Row]:
    """Requests before the purge and during it, in turn a list and a start."""
    client = Client(port, history.tokens["admin"])
    numbers = iter(range(10**9))

    def start_ms() -> float:
        task_id = history.tasks[next(numbers) % len(history.tasks)]
        return client.time_ms("POST", "/api/v1/executions", {"taskId": task_id})

    acts: dict[str, Callable[[], float]] = {
        "list": lambda: client.time_ms("GET", "/api/v1/executions?status=FAILED,LOST&limit=50"),
        "start": start_ms,
    }
    quiet = {name: [act() for _ in range(session.sizes.repeats * 4)] for name, act in acts.items()}
    busy: dict[str, list[float]] = {name: [] for name in acts}
    largest = {"": 0, "-wal": 0}
    found: dict[str, Any] = {}
    stop = threading.Event()

    def purge() -> None:
        argv = session.module(
            "bench.probes.purge_tasks", database, database.parent / "executions", _KEPT_DAYS
        )
        try:
            found.update(json.loads(run_program(argv, env=session.environment, timeout_s=900).stdout))
        finally:
            stop.set()

    worker = threading.Thread(target=purge)
    worker.start()
    while not stop.is_set():
        for name, act in acts.items():
            busy[name].append(act())
        largest = {end: max(most, _size_of(f"{database}{end}")) for end, most in largest.items()}
    worker.join()
    if not found.get("executions"):
        raise ProbeError("nothing was purged")
    gone = found["executions"]
    each_ms = found["wall_s"] * 1e3 / gone
    yield measured(
        "executions-purge", f"purge: each of {gone:,} executions beyond {_KEPT_DAYS} of {DAYS} days",
        ("each ms", Series((each_ms,))), "ms", floor=session.floor,
        note=f"the database had {largest[''] / MIB:.0f} MiB, its log at most {largest['-wal'] / MIB:.1f}",
    )  # fmt: skip
    for name, what in (("list", "a list of two states"), ("start", "`POST /api/v1/executions`")):
        yield measured(
            f"executions-purge-{name}", f"{what} during the purge: p95",
            ("p95 ms", Series((quantile(busy[name], 0.95),))), "ms", at_most(_MOST_MS), floor=session.floor,
            note=f"{len(busy[name])} of them, median {quantile(busy[name], 0.5):.0f} ms; "
            f"in a quiet moment p95 {quantile(quiet[name], 0.95):.0f} ms",
        )  # fmt: skip


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


GROUP = Group("executions", "half a million executions: lists, and a purge of most of them", measure)
