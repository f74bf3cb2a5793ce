"""Run records beside SQLite; purging old ones out of many while the API goes on answering."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load import Load
from bench.row import Group, Row, compared, measured
from bench.series import Series, at_least, at_most
from bench.timing import ProbeError, run_program

if TYPE_CHECKING:
    from bench.session import Session

_NOW = 1_700_000_000
_LINKS = 30_000  # of one file, below what file systems allow


def _rate(session: Session, argv: list[str]) -> float:
    return float(json.loads(run_program(argv, env=session.environment).stdout)["rate"])


def measure_write(session: Session) -> Iterable[Row]:
    """A run's record from begin to finish, and the same in SQLite."""
    count = 100 if session.is_quick else 400
    works = {
        "ours": session.module("bench.probes.records", session.work / "records", "write", count),
        "SQLite, WAL": session.baseline("sqlite_records", session.work / "wal.db", "WAL", count),
        "SQLite, rollback journal": session.baseline(
            "sqlite_records", session.work / "j.db", "DELETE", count
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(session.sizes.rounds + 1):
        for name, argv in works.items():
            rate = _rate(session, argv)
            if turn:
                rates[name].append(rate)
    found = {name: Series(tuple(each)) for name, each in rates.items()}
    for name, target in (("SQLite, rollback journal", at_least(0.5)), ("SQLite, WAL", None)):
        yield compared(
            "records" if target else "records-wal",
            f"run records a second, durable at start and end, to {name}, synchronous=FULL",
            ("ours /s", found["ours"]),
            (f"{name} /s", found[name]),
            target,
            floor=session.floor,
        )


def lay_down(directory: Path, total: int, old: int) -> None:
    """`total` finished records, `old` of them to be purged.

    The old ones are files of their own; of the young ones the directory entries are real, their
    contents shared by hard links, for it is names that purge goes by.
    """
    done = directory / "done"
    done.mkdir(parents=True)
    body = json.dumps({"state": "completed", "complete": True, "filler": "x" * 900})
    shared = ""
    for number in range(total):
        reqid = f"{number * 2654435761 % (1 << 32):08x}{number:08x}"
        completed = _NOW - 200_000 + number % 1000 if number < old else _NOW - number % 80_000
        path = f"{directory}/{reqid}.json"
        if number < old or (number - old) % _LINKS == 0:
            with open(path, "w") as file:
                file.write(body)
            shared = path
        else:
            os.link(shared, path)
        os.close(os.open(f"{done}/{completed:08x}-{reqid}", os.O_CREAT | os.O_WRONLY, 0o660))


def measure_purge(session: Session) -> Iterable[Row]:
    """The purge, with a client that asks the API all the while."""
    total, old = session.sizes.records, session.sizes.purged
    directory = session.work / "purge"
    session.say(f"laying down {total} records")
    lay_down(directory, total, old)
    os.sync()
    api = session.deployment.api("plain")
    session.generator.run(api.port, 1, seconds=0.3)
    quiet = [session.generator.run(api.port, 1, seconds=1.0) for _ in range(session.sizes.rounds)]
    busy: list[Load] = []
    found: dict[str, Any] = {}
    stop = threading.Event()

    def purge() -> None:
        argv = session.module("bench.probes.records", directory, "purge", _NOW)
        try:
            found.update(json.loads(run_program(argv, env=session.environment).stdout))
        finally:
            stop.set()

    worker = threading.Thread(target=purge)
    worker.start()
    while not stop.is_set():
        busy.append(session.generator.run(api.port, 1, seconds=0.25))
    worker.join()
    if found.get("removed") != old:
        raise ProbeError(f"{found.get('removed')} of {old} records purged")
    rest_s = (found["wall_s"] - found["scan_s"]) * 1e3 / old
    yield measured(
        "purge-scan",
        f"purge: scan of {total:,} names",
        ("scan s", Series((found["scan_s"],))),
        "s",
        at_most(1.0),
        floor=session.floor,
    )
    yield measured(
        "purge-each",
        f"purge: each of {old:,} records removed",
        ("each ms", Series((max(rest_s, 0.0),))),
        "ms",
        at_most(0.2),
        floor=session.floor,
    )
    yield compared(
        "purge-api",
        "`GET /health` during the purge, median latency to that of a quiet moment",
        ("during µs", Series(tuple(each.p50_us for each in busy))),
        ("quiet µs", Series(tuple(each.p50_us for each in quiet))),
        at_most(1.5),
        floor=session.floor,
        note=f"p99 {max(each.p99_us for each in busy) / 1e3:.1f} ms during, "
        f"{max(each.p99_us for each in quiet) / 1e3:.1f} ms quiet",
    )


WRITE = Group("records", "run records beside SQLite", measure_write)
PURGE = Group("purge", "purging old records out of a million, the API undisturbed", measure_purge)
