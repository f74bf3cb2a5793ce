"""The table of docs/performance.md, written from results.json.

    python -m bench.report [RESULTS [PAGE]]

Replaces what stands between the two marks of the page and nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.table import figure

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
_HERE = Path(__file__).parent
_GROUPS = {
    "fanout": "Fan-out", "growth": "Growth", "hosts": "Thousands of hosts", "api": "A run through the API",
    "health": "`GET /health`", "keepalive": "`GET /health`", "tls": "TLS", "agent": "The agent",
    "cli": "The command line", "records": "Run records", "hook": "The auth hook",
    "live": "Live runs", "runs": "The list of runs", "scale": "Thousands of hosts",
    "scheduler": "The scheduler", "memory": "Memory", "purge": "Purge",
    "executions": "Executions",
}  # fmt: skip


def markdown(document: dict[str, Any]) -> str:
    """Where it was measured, then a table for each kind of row."""
    lines = [_environment(document["environment"]), ""]
    title = ""
    order = [*dict.fromkeys(_GROUPS.values()), "Others"]
    for row in sorted(document["rows"], key=lambda row: order.index(_title(row))):
        found = _title(row)
        if found != title:
            title = found
            lines += ["", f"### {title}", "", "| row | measured | target | noise | verdict | medians |"]
            lines.append("|---|---|---|---|---|---|")
        lines.append(_line(row))
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip() + "\n"


def _title(row: dict[str, Any]) -> str:
    return _GROUPS.get(row["name"].partition("-")[0], "Others")


def _environment(about: dict[str, Any]) -> str:
    versions = "".join(f", {name} {number}" for name, number in sorted(about["versions"].items()))
    loads = " and ".join(str(about[key][0]) for key in ("load_before", "load_after"))
    later = about.get("measured_again", {})
    apart = "; ".join(
        f"{', '.join(name for name in later if later[name] == moment)} at {moment['date']} "
        f"(load {moment['load_before'][0]} and {moment['load_after'][0]})"
        for moment in {each["date"]: each for each in later.values()}.values()
    )
    return (
        f"Measured {about['date']} in {about['seconds']} s: {about['cores']} cores of {about['cpu']}, "
        f"{about['memory_mb']} MB, {about['system']}, Linux {about['kernel']}, Python {about['python']}, "
        f"{about['openssl']}{versions}; load before and after {loads}; "
        f"noise floor {about['noise_floor']:.1%}.{f' In runs of their own: {apart}.' if apart else ''}"
    )


def _line(row: dict[str, Any]) -> str:
    value = "–" if row["value"] is None else f"{figure(row['value'])} {row['unit']}".strip()
    noise = "" if row["value"] is None else f"±{row['noise']:.0%}"
    medians = "; ".join(f"{name} {figure(each['median'])}" for name, each in row["series"].items())
    verdict = f"**{row['status']}**" if row["status"].isupper() else row["status"]
    note = f" ({row['note']})" if row["note"] else ""
    cells = [row["what"] + note, value, row["target"] or "", noise, verdict, medians]
    return f"| {' | '.join(each.replace('|', chr(0x2223)) for each in cells)} |"


def replace_between(page: str, text: str) -> str:
    """The page with the text between the marks. Raises: ValueError where a mark is missing."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} … {END}")
    return f"{head}{BEGIN}\n\n{text}\n{END}{tail}"


def main() -> None:
    """Write the page anew."""
    results, page = [*sys.argv[1:], *(None, None)][:2]
    document = json.loads(Path(results or _HERE / "results.json").read_text())
    target = Path(page or _HERE.parent / "docs" / "performance.md")
    target.write_text(replace_between(target.read_text(), markdown(document)))


if __name__ == "__main__":
    main()
