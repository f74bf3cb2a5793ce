"""Runs that are watched: how late their lines come; and the list of runs where there are many."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.row import Group, Row, measured
from bench.series import Series, at_most, quantile
from bench.timing import ProbeError, run_program, timed
from ctrl_exec.common.value import replace
from ctrl_exec.services.records import encode_record, new_record
from ctrl_exec.services.run_filter import RunFilter
from ctrl_exec.services.run_index import RunIndex

if TYPE_CHECKING:
    from bench.session import Session

_TICKS = 8
_PAUSE_S = 0.5
_BEGAN = 1_700_000_000


def measure(session: Session) -> Iterable[Row]:
    """Lines of a script that says the time, on all real agents at once, as they reach a follower."""
    count = session.sizes.real
    session.deployment.agents(count)
    api = session.deployment.api("live")
    pattern = f"real-[01-{count:02d}]"
    argv = session.module("bench.probes.live", api.port, pattern, _TICKS, _PAUSE_S)
    middles, tails = [], []
    for turn in range(session.sizes.rounds + 1):
        found = json.loads(run_program(argv, env=session.environment).stdout)
        latencies = found["latencies_ms"]
        if found["hosts"] != count or len(latencies) != count * _TICKS:
            raise ProbeError(f"{found['hosts']} of {count} hosts and {len(latencies)} lines came")
        if turn:  # the first one warms the connections
            middles.append(quantile(latencies, 0.5))
            tails.append(quantile(latencies, 0.95))
    yield measured(
        f"live-{count}", f"a line of output on {count} hosts: from the script to whoever follows, p95",
        ("p95 ms", Series(tuple(tails))), "ms", at_most(300), floor=session.floor,
        note=f"median {Series(tuple(middles)).median:.0f} ms; two lines a second and host",
    )  # fmt: skip
    session.deployment.end_api("live")


def lay_down(directory: Path, count: int) -> None:
    """That many completed records, as a backup brings them."""
    (directory / "done").mkdir(parents=True)
    base = new_record("0" * 16, "deploy", ("web-01", "db-01"), created=0, submitter="alice")
    results = tuple(replace(each, state="ok", exit=0) for each in base.results)
    for number in range(count):
        reqid = f"{number * 2654435761 % (1 << 32):08x}{number:08x}"
        moment = _BEGAN + number
        record = replace(
            base, reqid=reqid, created=moment, completed=moment + 1, results=results,
            script="deploy" if number % 1000 else "rare", state="completed", complete=True,
        )  # fmt: skip
        (directory / f"{reqid}.json").write_text(json.dumps(encode_record(record)) + "\n")
        os.close(os.open(directory / "done" / f"{moment + 1:08x}-{reqid}", os.O_CREAT | os.O_WRONLY, 0o660))


def measure_list(session: Session) -> Iterable[Row]:
    """The first page, and one that is found by a rare script, of the list of many runs."""
    count, directory = session.sizes.listed, session.work / "listed"
    session.say(f"laying down {count} records")
    lay_down(directory, count)
    index = RunIndex(str(directory))
    built_s = timed(index.rebuild)
    pages = {"first": RunFilter(), "rare": RunFilter(script="rare")}
    found = {name: Series(_times_ms(index, wanted, session.sizes.repeats)) for name, wanted in pages.items()}
    yield measured(
        "runs-first-page", f"list of {count:,} runs: the newest 100", ("page ms", found["first"]), "ms",
        floor=session.floor, note=f"the index was made in {built_s:.1f} s",
    )  # fmt: skip
    yield measured(
        "runs-filtered", f"list of {count:,} runs: up to 100 of a script that one in a thousand ran",
        ("page ms", found["rare"]), "ms", floor=session.floor,
    )  # fmt: skip


def _times_ms(index: RunIndex, wanted: RunFilter, repeats: int) -> tuple[float, ...]:
    times = []
    for _ in range(repeats):
        times.append(timed(lambda: index.page(wanted, 100)) * 1e3)
        if not index.page(wanted, 100).runs:
            raise ProbeError("the list is empty")
    return tuple(times)


LIVE = Group("live", "how late lines of running scripts come to whoever follows them", measure)
LIST = Group("runs", "the list of many runs", measure_list)
