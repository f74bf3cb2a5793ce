"""The benches: measure, print the table, write results and curves, fail on a missed target.

    python -m bench [--quick] [--only GROUP]... [--merge] [--list] [--output DIRECTORY] [--keep]

A whole run writes results.json and its curves; a quick or partial one results-partial.json, unless
--merge puts its groups in the place of the same groups in results.json, with the moment noted there.

Exit status: 0 no target missed by more than the noise, 1 some were or could not be measured, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import environment, svg
from bench.row import FAILED, SKIPPED, Group, Row, absent
from bench.rows import (
    agent,
    api_run,
    cli,
    executions,
    fanout,
    health,
    hook,
    live,
    memory,
    records,
    scale,
    scheduler,
    tls,
)
from bench.session import QUICK, Session, Sizes, interpreter
from bench.table import cells, render
from bench.timing import allow_descriptors

GROUPS: tuple[Group, ...] = (
    fanout.FANOUT, fanout.GROWTH, scale.GROUP, api_run.GROUP, health.GROUP, tls.GROUP, agent.GROUP, cli.ONE,
    cli.MANY, records.WRITE, hook.GROUP, live.LIVE, live.P95, live.LIST, records.PURGE, scheduler.GROUP,
    executions.GROUP, memory.GROUP,
)  # fmt: skip
_BUSY = 0.15
_COSTLY = frozenset({"fanout", "growth", "scale", "scheduler", "executions", "live", "live-p95"})
_NOT_QUICK = frozenset({"cli-50"})  # the tools of others take ten seconds a time
_BUDGET_S = 780
_QUICK_BUDGET_S = 95
"""After so long no further group is begun."""
_REPRIEVE_S = 90
"""So much later the group under way is broken off: all ends in a quarter of an hour, or in three minutes."""

CHARTS = {
    "growth-time": svg.Chart("`true` on N agents, fresh connections", "hosts", "seconds"),
    "growth-memory": svg.Chart("Peak memory of the same", "hosts", "MiB"),
    "api-memory": svg.Chart("The API's parent, its own memory", "requests", "MiB"),
}


def main() -> int:
    """Measure what is asked for."""
    options = _options()
    if options.list:
        for group in GROUPS:
            print(f"{group.name:<10} {group.summary}")
        return 0
    names = {group.name for group in GROUPS}
    if unknown := set(options.only) - names:
        print(f"no such group: {', '.join(sorted(unknown))}; --list names them", file=sys.stderr)
        return 2
    groups = [group for group in GROUPS if not options.only or group.name in options.only]
    allow_descriptors()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing started here is left behind
    if options.quick:  # what takes longest comes last, so that on a slow machine the fewest are left out
        groups.sort(key=lambda group: group.name in _COSTLY)
    budget_s = math.inf if options.only else _QUICK_BUDGET_S if options.quick else _BUDGET_S
    return run_groups(groups, options, budget_s)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure ctrl-exec beside its baselines.")
    parser.add_argument("--quick", action="store_true", help="small sizes, two minutes; worth a glance only")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help="only this group")
    parser.add_argument("--merge", action="store_true", help="put the groups measured into results.json")
    parser.add_argument("--list", action="store_true", help="name the groups")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="where results are written"
    )
    parser.add_argument("--keep", action="store_true", help="leave the working directory")
    return parser.parse_args()


def run_groups(groups: list[Group], options: argparse.Namespace, budget_s: float) -> int:
    """Measure the groups, write and print what came of it; no group is begun when the time is over."""
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {text}", file=sys.stderr, flush=True)

    # on a disk, as the real thing is: /tmp may be memory
    work = Path(tempfile.mkdtemp(prefix="ctrl-exec-bench-", dir="/var/tmp"))
    python = interpreter()
    about = environment.describe(python, _version_of(python))
    rows: list[Row] = []
    session = Session(work, QUICK if options.quick else Sizes(), python, sys.executable, say, options.quick)
    deadline = start + budget_s
    if budget_s < math.inf:
        signal.signal(signal.SIGALRM, _time_is_over)
        signal.setitimer(signal.ITIMER_REAL, budget_s + _REPRIEVE_S)
    try:
        with session:
            for group in groups:
                if time.monotonic() > deadline or (
                    options.quick and group.name in _NOT_QUICK - {*options.only}
                ):
                    rows.append(_left_out(group, "no time for it"))
                    continue
                say(f"{group.name}: {group.summary}")
                session.calibrate()
                _measure(group, session, say, rows)
            session.calibrate()
    except Exception:  # at the end of something that was started: what was measured is measured
        traceback.print_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # also when it is ended from outside
        if options.keep:
            say(f"kept {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
        about |= {
            "noise_floor": round(session.floor, 4),
            "versions": session.versions,
            "load_after": environment.load(),
            "seconds": round(time.monotonic() - start),
            "quick": options.quick,
        }
        _write(options, about, rows, session.curves, is_whole=len(rows) > 0 and _is_whole(rows, groups))
    print(render(rows))
    if session.floor > _BUSY:
        print(
            f"\nThe machine was busy: its own noise is {session.floor:.0%}. Verdicts of this run mean little."
        )
    return int(any(row.is_missed or row.status == FAILED for row in rows))


def _time_is_over(_number: int, _frame: object) -> None:
    raise TimeoutError("no time left for it")


def _left_out(group: Group, why: str) -> Row:
    """The row of a group that is not measured."""
    return replace(absent(group.name, group.summary, None, why, SKIPPED), group=group.name)


def _is_whole(rows: list[Row], groups: list[Group]) -> bool:
    """Whether every group has had its turn."""
    return {row.group for row in rows} >= {group.name for group in groups}


def _measure(group: Group, session: Session, say: Any, rows: list[Row]) -> None:
    """Add the group's rows; one that breaks is a row that says so, and the others go on."""
    try:
        for measured in group.measure(session):
            row = replace(measured, group=group.name)
            rows.append(row)
            say("  " + "  ".join(each for each in cells(row)[:5] if each))
    except Exception as error:
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}".split("\n", 1)[0][:160]
        rows.append(Row(group.name, group.summary, None, FAILED, note=words, group=group.name))


def _write(
    options: argparse.Namespace, about: dict[str, Any], rows: list[Row],
    curves: dict[str, dict[str, list[tuple[float, float]]]], *, is_whole: bool,
) -> None:  # fmt: skip
    """results.json and the drawings; a partial or quick run does not replace the figures of a whole one."""
    is_whole = is_whole and not options.only and not options.quick
    ending = "" if is_whole or (options.merge and not options.quick) else "-partial"
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"results{ending}.json"
    found: dict[str, Any] = {"environment": about, "rows": [row.as_json() for row in rows], "curves": curves}
    if not ending and not is_whole and path.exists():
        found = merged(json.loads(path.read_text()), found)
    found.pop("not_built_yet", None)  # of an older file
    for status in ("missed", SKIPPED, FAILED):
        found[status.replace(" ", "_")] = [
            row["name"] for row in found["rows"] if row["status"].lower() == status
        ]
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for name, lines in curves.items():
        drawing = svg.draw(CHARTS[name], [svg.Curve(each, points) for each, points in lines.items()])
        (options.output / f"{name}{ending}.svg").write_text(drawing)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old results with the groups of the new ones in their places."""
    fresh: dict[str, list[Any]] = {}
    for row in new["rows"]:
        fresh.setdefault(row["group"], []).append(row)
    moment = {key: new["environment"][key] for key in ("date", "load_before", "load_after", "noise_floor")}
    about = dict(old["environment"])
    about["measured_again"] = about.get("measured_again", {}) | dict.fromkeys(fresh, moment)
    about["versions"] = about["versions"] | new["environment"]["versions"]
    order = dict.fromkeys([row["group"] for row in old["rows"]] + list(fresh))
    kept: dict[str, list[Any]] = {name: [] for name in order}
    for row in old["rows"]:
        kept[row["group"]].append(row)
    rows = [row for name in order for row in fresh.get(name, kept[name])]
    return old | {"environment": about, "rows": rows, "curves": old["curves"] | new["curves"]}


def _version_of(python: str) -> str:
    return subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]


if __name__ == "__main__":
    sys.exit(main())
