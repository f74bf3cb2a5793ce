"""What a run has come to, as every front end shows it.

Owns the words of that answer. Must not know where it was read from or who it is for; the submitter
of a run is not in it.
"""

from __future__ import annotations

from ctrl_exec.common.messages import STATES, HostResult
from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.services.records import CancelOutcome, RunRecord


@value
class RunReport:
    """One run, finished or growing.

    `results` holds one entry for each of `hosts`, in the order asked; hosts not yet final are in
    state pending, accepted or running. `state` is running, completed, cancelled or interrupted;
    `complete` says that nothing more will come, `completed` when that was (epoch), else None.
    `expanded` tells whether a host pattern was used. `batches` are the hosts of each batch, in the order
    in which they are begun, empty where all were begun at once; `begun` how many batches have been.
    `cancels` tell what became of a cancel, for each host that was told of it. `joined`: an earlier
    request with the same idempotency key began the run.
    """

    reqid: str
    script: str
    args: tuple[str, ...]
    mode: str
    state: str
    complete: bool
    created: int
    completed: int | None
    hosts: tuple[str, ...]
    results: tuple[HostResult, ...]
    expanded: bool = False
    batches: tuple[tuple[str, ...], ...] = ()
    begun: int = 0
    cancels: tuple[CancelOutcome, ...] = ()
    joined: bool = False

    @property
    def pending(self) -> tuple[str, ...]:
        """The hosts whose last word is still to come."""
        return tuple(each.host for each in self.results if not each.is_final)

    @property
    def counts(self) -> dict[str, int]:
        """How many hosts are in which state; they always sum to the hosts."""
        found = dict.fromkeys(STATES, 0)
        for each in self.results:
            found[each.state] += 1
        return {state: count for state, count in found.items() if count}

    @property
    def has_succeeded(self) -> bool:
        """Whether the script ended with exit code 0 on every host."""
        return self.complete and all(each.state == "ok" and each.exit == 0 for each in self.results)

    def run_json(self) -> dict[str, Any]:
        """The answer to a sync run: `{ok, reqid, results}`, and `hosts` where a pattern was used."""
        shown: dict[str, Any] = {"ok": True, "reqid": self.reqid}
        if self.expanded:
            shown["hosts"] = list(self.hosts)
        shown["results"] = [each.as_json() for each in self.results]
        return shown | self._live_json()

    def _live_json(self) -> dict[str, Any]:
        """`batches` (`[{hosts, begun}]`) and `cancel` (`{host: {ended, error?}}`), where there are any."""
        shown: dict[str, Any] = {}
        if self.batches:
            shown["batches"] = [
                {"hosts": list(hosts), "begun": number < self.begun}
                for number, hosts in enumerate(self.batches)
            ]
        if self.cancels:
            shown["cancel"] = {each.host: each.as_json() for each in self.cancels}
        return shown

    def accepted_json(self) -> dict[str, Any]:
        """The answer to an async run: `{ok, async, reqid, results: [{host, script, status, reqid}]}`."""
        shown: dict[str, Any] = {"ok": True, "async": True, "reqid": self.reqid}
        if self.expanded:
            shown["hosts"] = list(self.hosts)
        shown["results"] = [
            {"host": host, "script": self.script, "status": "accepted", "reqid": self.reqid}
            for host in self.hosts
        ]
        return shown

    def status_json(self) -> dict[str, Any]:
        """The answer to a question for the run's state; `completed` only when it is."""
        shown: dict[str, Any] = {
            "ok": True,
            "reqid": self.reqid,
            "script": self.script,
            "args": list(self.args),
            "mode": self.mode,
            "state": self.state,
            "complete": self.complete,
            "created": self.created,
            "hosts": list(self.hosts),
            "pending": list(self.pending),
            "results": [each.as_json() for each in self.results],
        }
        if self.completed is not None:
            shown["completed"] = self.completed
        return shown | self._live_json()


def report_of(record: RunRecord) -> RunReport:
    """The report of a stored record."""
    return RunReport(
        reqid=record.reqid,
        script=record.script,
        args=record.args,
        mode=record.mode,
        state=record.state,
        complete=record.complete,
        created=record.created,
        completed=record.completed,
        hosts=record.hosts,
        results=record.results,
        expanded=record.expanded,
        batches=record.batches,
        begun=record.begun,
        cancels=record.cancels,
    )
