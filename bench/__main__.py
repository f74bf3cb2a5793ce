"""The benches: measure, print the table, write results and curves, fail on a missed target.

    python -m bench [--quick] [--only GROUP]... [--list] [--output DIRECTORY] [--keep]

Exit status: 0 no target missed by more than the noise, 1 some were or could not be measured, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import environment, svg
from bench.row import Group, Row
from bench.rows import agent, api_run, cli, fanout, health, hook, memory, records, scale, scheduler, tls
from bench.series import MISSED
from bench.session import QUICK, Session, Sizes, interpreter
from bench.table import cells, render
from bench.timing import allow_descriptors

GROUPS: tuple[Group, ...] = (
    fanout.FANOUT, fanout.GROWTH, scale.GROUP, api_run.GROUP, health.GROUP, tls.GROUP, agent.GROUP, cli.ONE,
    cli.MANY, records.WRITE, hook.GROUP, scheduler.GROUP, memory.GROUP, records.PURGE,
)  # fmt: skip
FAILED = "could not be measured"

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
    return _run(groups, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure ctrl-exec beside its baselines.")
    parser.add_argument("--quick", action="store_true", help="small sizes, two minutes; worth a glance only")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help="only this group")
    parser.add_argument("--list", action="store_true", help="name the groups")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="where results are written"
    )
    parser.add_argument("--keep", action="store_true", help="leave the working directory")
    return parser.parse_args()


def _run(groups: list[Group], options: argparse.Namespace) -> int:
    allow_descriptors()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing started here is left behind
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {text}", file=sys.stderr, flush=True)

    # on a disk, as the real thing is: /tmp may be memory
    work = Path(tempfile.mkdtemp(prefix="ctrl-exec-bench-", dir="/var/tmp"))
    python = interpreter()
    about = environment.describe(python, _version_of(python))
    rows: list[Row] = []
    try:
        with Session(
            work, QUICK if options.quick else Sizes(), python, sys.executable, say, options.quick
        ) as session:
            for group in groups:
                say(f"{group.name}: {group.summary}")
                session.calibrate()
                rows += _measure(group, session, say)
            session.calibrate()
            about |= {"noise_floor": round(session.floor, 4), "versions": session.versions}
            curves = session.curves
    finally:
        if options.keep:
            say(f"kept {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    about |= {
        "load_after": environment.load(),
        "seconds": round(time.monotonic() - start),
        "quick": options.quick,
    }
    print(render(rows))
    _write(options, about, rows, curves)
    return int(any(row.is_missed or row.status == FAILED for row in rows))


def _measure(group: Group, session: Session, say: Any) -> Iterable[Row]:
    """The group's rows; one that breaks is a row that says so, and the others go on."""
    rows: list[Row] = []
    try:
        for row in group.measure(session):
            rows.append(row)
            say("  " + "  ".join(each for each in cells(row)[:5] if each))
    except Exception as error:
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}".split("\n", 1)[0][:160]
        rows.append(Row(group.name, group.summary, None, FAILED, note=words))
    return rows


def _write(
    options: argparse.Namespace, about: dict[str, Any], rows: list[Row],
    curves: dict[str, dict[str, list[tuple[float, float]]]],
) -> None:  # fmt: skip
    """results.json and the drawings; a partial or quick run does not replace the figures of a whole one."""
    is_whole = not options.only and not options.quick
    stem = "results" if is_whole else "results-partial"
    options.output.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": about, "rows": [row.as_json() for row in rows],
        "missed": [row.name for row in rows if row.status == MISSED],
        "not_built": [row.name for row in rows if row.status == "not built yet"],
        "skipped": [row.name for row in rows if row.status == "skipped"],
        "curves": curves,
    }  # fmt: skip
    (options.output / f"{stem}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for name, lines in curves.items():
        drawing = svg.draw(CHARTS[name], [svg.Curve(each, points) for each, points in lines.items()])
        (options.output / (f"{name}.svg" if is_whole else f"{name}-partial.svg")).write_text(drawing)


def _version_of(python: str) -> str:
    return subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]


if __name__ == "__main__":
    sys.exit(main())
