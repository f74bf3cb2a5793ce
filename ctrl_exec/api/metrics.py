"""`GET /metrics` in the text format of Prometheus.

Owns names and form of the figures. Counters come from the server's shared block, the rest is looked
up at the moment of asking; what the other daemons have to say they left in `metrics_dir`.
Source: Prometheus exposition format 0.0.4.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

import ctrl_exec
from ctrl_exec.api.figures import BUCKETS_MS, HOOK_OUTCOMES, HTTP_STATUSES, RUN_KINDS
from ctrl_exec.common.certificate import parse_certificate, pem_to_der
from ctrl_exec.common.clock import parse_openssl_time
from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.common.files import read_bounded, read_json
from ctrl_exec.common.messages import STATES
from ctrl_exec.common.routing import Response
from ctrl_exec.common.slots import STATE_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ctrl_exec.api.figures import Layout
    from ctrl_exec.api.inquiry import Inquiry
    from ctrl_exec.dispatcher import Dispatcher

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CERTIFICATE_LIMIT_BYTES = 1 << 20
_DAY_S = 86_400


class Page:
    """The growing text; each figure with its type and meaning once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def figure(
        self, name: str, kind: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float]]
    ) -> None:
        """One figure with its samples; left out without any."""
        made = [self._sample(f"ctrl_exec_{name}", labels, number) for labels, number in samples]
        if made:
            self._lines += [f"# HELP ctrl_exec_{name} {meaning}", f"# TYPE ctrl_exec_{name} {kind}", *made]

    @staticmethod
    def _sample(name: str, labels: Mapping[str, str], number: float) -> str:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        return f"{name}{{{inside}}} {number:.12g}" if inside else f"{name} {number:.12g}"

    def histogram(self, name: str, meaning: str, counts: list[int], sum_s: float) -> None:
        """Durations, cumulative by bucket, in seconds."""
        whole = f"ctrl_exec_{name}"
        self._lines += [f"# HELP {whole} {meaning}", f"# TYPE {whole} histogram"]
        total = 0
        for most_ms, count in zip((*BUCKETS_MS, None), counts, strict=True):
            total += count
            label = "+Inf" if most_ms is None else f"{most_ms / 1000:g}"
            self._lines.append(self._sample(f"{whole}_bucket", {"le": label}, total))
        self._lines += [f"{whole}_sum {sum_s:.12g}", f"{whole}_count {total}"]

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def show_metrics(inquiry: Inquiry) -> Response:
    """`GET /metrics`."""
    page = Page()
    page.figure("info", "gauge", "Version of the API.", [({"version": ctrl_exec.__version__}, 1)])
    _counters(page, inquiry.figures.layout, inquiry.child.totals())
    _children(page, inquiry)
    _fleet(page, inquiry.dispatcher)
    _runs(page, inquiry.dispatcher)
    _daemons(page, inquiry.dispatcher.config.metrics_dir)
    return Response(200, (("Content-Type", CONTENT_TYPE),), page.text().encode("utf-8"))


def _counters(page: Page, layout: Layout, totals: list[int]) -> None:
    page.figure(
        "requests_total", "counter", "Requests by route and status.",
        (
            ({"route": route, "status": str(status) if status else "other"}, count)
            for place, route in enumerate(layout.routes)
            for status in HTTP_STATUSES
            if (count := totals[layout.request(place, status)])
        ),
    )  # fmt: skip
    durations = totals[layout.durations : layout.buckets]
    page.figure(
        "request_seconds_total", "counter", "Time spent on requests by route.",
        (({"route": route}, us / 1e6) for route, us in zip(layout.routes, durations, strict=True) if us),
    )  # fmt: skip
    page.histogram(
        "request_seconds",
        "Time to the answer of a request.",
        totals[layout.buckets : layout.hooks],
        sum(durations) / 1e6,
    )
    page.figure(
        "auth_hook_total", "counter", "Answers of the auth hook.",
        (({"outcome": word}, totals[layout.hooks + place]) for place, word in enumerate(HOOK_OUTCOMES)),
    )  # fmt: skip
    page.figure(
        "auth_hook_seconds_total", "counter", "Time spent in the auth hook.",
        [({}, totals[layout.hook_us] / 1e6)],
    )  # fmt: skip
    page.figure(
        "runs_total", "counter", "Runs by their mode and their state when they were answered.",
        (
            ({"mode": mode, "state": state}, totals[layout.runs + place])
            for place, (mode, state) in enumerate(RUN_KINDS)
        ),
    )  # fmt: skip
    page.figure(
        "run_hosts_total", "counter", "Hosts of runs by their state when the run was answered.",
        (({"state": state}, totals[layout.hosts + place]) for place, state in enumerate(STATES)),
    )  # fmt: skip
    page.figure(
        "lock_conflicts_total", "counter", "Runs refused because of a lock.",
        [({}, totals[layout.lock_conflicts])],
    )  # fmt: skip


def _children(page: Page, inquiry: Inquiry) -> None:
    states = [view.state for view in inquiry.child.live()]
    page.figure(
        "children", "gauge", "Request children by what they wait for.",
        (({"state": STATE_NAMES[state]}, states.count(state)) for state in range(1, len(STATE_NAMES))),
    )  # fmt: skip
    config = inquiry.dispatcher.config
    page.figure("children_limit", "gauge", "Request children at most.", [({}, config.api_max_children)])
    page.figure("long_requests", "gauge", "Requests counted as long.", [({}, inquiry.child.long_count())])
    page.figure("long_requests_limit", "gauge", "Long requests at most.", [({}, config.api_max_long)])


def _fleet(page: Page, dispatcher: Dispatcher) -> None:
    config, now = dispatcher.config, time.time()
    expiries = []
    with suppress(CtrlExecError):
        records = dispatcher.registry.records()
        page.figure("agents_registered", "gauge", "Paired agents.", [({}, len(records))])
        for record in records:
            with suppress(CtrlExecError):
                expiries.append((parse_openssl_time(record.expiry).timestamp() - now) / _DAY_S)
    samples: list[tuple[Mapping[str, str], float]] = []
    paths = (("ca", config.ca_cert_path), ("dispatcher", config.cert_path), ("api", config.api_cert))
    for name, path in paths:
        days = _days_left(path, now) if path else None
        if days is not None:
            samples.append(({"certificate": name}, round(days, 3)))
    if expiries:
        samples.append(({"certificate": "agents"}, round(min(expiries), 3)))
    page.figure(
        "certificate_days_left",
        "gauge",
        "Days until a certificate expires; for agents the first one.",
        samples,
    )
    page.figure(
        "agents_expiring", "gauge", "Agents whose certificate expires within so many days.",
        (({"days": str(days)}, sum(left < days for left in expiries)) for days in (7, 30, 90)),
    )  # fmt: skip


def _days_left(path: str, now: float) -> float | None:
    with suppress(CtrlExecError, OSError, UnicodeDecodeError):
        pem = read_bounded(path, _CERTIFICATE_LIMIT_BYTES, follow=True).decode("ascii")
        return (parse_certificate(pem_to_der(pem)).not_after.timestamp() - now) / _DAY_S
    return None


def _runs(page: Page, dispatcher: Dispatcher) -> None:
    with suppress(CtrlExecError):
        count = len(tuple(dispatcher.results.unfinished()))
        page.figure("runs_unfinished", "gauge", "Runs that are not complete.", [({}, count)])
    with suppress(CtrlExecError):
        page.figure(
            "locks_held", "gauge", "Locks held on a host and script.", [({}, len(dispatcher.locks.held()))]
        )


def _daemons(page: Page, directory: str) -> None:
    """What other daemons published, each with how long ago."""
    ages: list[tuple[Mapping[str, str], float]] = []
    figures: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for name in _names(directory):
        with suppress(CtrlExecError):
            document = read_json(os.path.join(directory, name))
            if isinstance(document, dict) and isinstance(document.get("at"), (int, float)):
                program = name.removesuffix(".json")
                ages.append(({"program": program}, max(0.0, time.time() - document["at"])))
                _collect(figures, program, document.get("duties"))
    page.figure("daemon_published_seconds", "gauge", "Age of a daemon's own figures.", ages)
    for key, samples in sorted(figures.items()):
        page.figure(f"duty_{key}", "gauge", "As its daemon published it.", samples)


def _collect(figures: dict[str, list[tuple[Mapping[str, str], float]]], program: str, duties: object) -> None:
    """Add `{duty: {figure: number}}`; whatever is no such thing is left out."""
    for duty, found in duties.items() if isinstance(duties, dict) else ():
        for key, number in found.items() if isinstance(found, dict) else ():
            if str(key).isidentifier() and isinstance(number, (int, float)) and not isinstance(number, bool):
                labels = {"program": program, "duty": str(duty)}
                figures.setdefault(str(key), []).append((labels, float(number)))


def _names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    except OSError:
        return []
