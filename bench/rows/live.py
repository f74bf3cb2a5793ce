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
from tests.support.emulator import Agent, addresses, write_agents

if TYPE_CHECKING:
    from bench.session import Session

_TICKS = 8
_PAUSE_S = 0.5
_PRINTERS = 50
_LINES = 30
_LINE_EVERY_S = 0.1
_BEGAN = 1_700_000_000


def measure(session: Session) -> Iterable[Row]:
    """Lines of a script that says the time, on all real agents at once, as they reach a follower."""
    count = session.sizes.real
    session.deployment.agents(count)
    api = session.deployment.api("live")
    pattern = f"real-[01-{count:02d}]"
    middles, tails = _latencies(session, (api.port, pattern, _TICKS, _PAUSE_S), count)
    yield measured(
        f"live-{count}", f"a line of output on {count} hosts: from the script to whoever follows, p95",
        ("p95 ms", tails), "ms", at_most(300), floor=session.floor,
        note=f"median {middles.median:.0f} ms; two lines a second and host",
    )  # fmt: skip
    session.deployment.end_api("live")


def measure_p95(session: Session) -> Iterable[Row]:
    """Lines of fifty emulated agents that print one each 100 ms, as they reach a follower."""
    _serve_printers(session)
    api = session.deployment.api("live-p95")
    pattern = f"printer-[01-{_PRINTERS:02d}]"
    middles, tails = _latencies(session, (api.port, pattern, _LINES, _LINE_EVERY_S), _PRINTERS)
    yield measured(
        "live-p95", f"a line each 100 ms on {_PRINTERS} emulated agents: from printing to follower, p95",
        ("p95 ms", tails), "ms", at_most(300), floor=session.floor,
        note=f"median {middles.median:.0f} ms; {_PRINTERS / _LINE_EVERY_S:.0f} lines a second",
    )  # fmt: skip
    session.deployment.end_api("live-p95")


def _serve_printers(session: Session) -> None:
    """Register emulated agents whose scripts print lines with the time, and have them serve."""
    agents, leaves = [], {}
    for number, ip in zip(range(1, _PRINTERS + 1), addresses(), strict=False):
        leaf = session.authority.issue(f"printer-{number:02d}")
        leaves[f"printer-{number:02d}"] = (leaf.fingerprint, leaf.serial)
        agents.append(
            Agent(
                f"printer-{number:02d}", ip, str(leaf.pem), str(session.authority.path), stdout="",
                lines=_LINES, line_every_s=_LINE_EVERY_S, stamped=True,
            )
        )  # fmt: skip
    listing = session.work / "printers.json"
    write_agents(agents, listing)
    argv = session.module("tests.support.emulator", "--agents", listing)
    port = int(session.daemon(argv, "printers", module=True).announcement()["port"])
    session.deployment.register_emulated(agents, leaves, port)


def _latencies(session: Session, watched: tuple[object, ...], count: int) -> tuple[Series, Series]:
    """The median and the p95 of each round of watching that run on so many hosts."""
    argv = session.module("bench.probes.live", *watched)
    middles, tails = [], []
    for turn in range(session.sizes.rounds + 1):
        found = json.loads(run_program(argv, env=session.environment).stdout)
        latencies = found["latencies_ms"]
        if found["hosts"] != count or len(latencies) != count * int(str(watched[2])):
            raise ProbeError(f"{found['hosts']} of {count} hosts and {len(latencies)} lines came")
        if turn:  # the first one warms the connections
            middles.append(quantile(latencies, 0.5))
            tails.append(quantile(latencies, 0.95))
    return Series(tuple(middles)), Series(tuple(tails))


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
P95 = Group("live-p95", "how late lines of fifty emulated agents come to whoever follows them", measure_p95)
LIST = Group("runs", "the list of many runs", measure_list)
