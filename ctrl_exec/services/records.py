"""What is kept of a run, as a value and as the JSON document on disk.

Owns the fields of a record and their codec; what the lines of its event log add is `progress`. Opens no
file.
"""

from __future__ import annotations

from ctrl_exec.common.errors import MessageError
from ctrl_exec.common.messages import HostResult, integer_of, read_object, text_of, texts_of
from ctrl_exec.common.names import check_reqid
from ctrl_exec.common.value import field, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

STATES = ("running", "completed", "cancelled", "interrupted")
MODES = ("sync", "async")


@value
class CancelOutcome:
    """What an agent said when told to end the run; `error` where it could not be told or not do it."""

    host: str
    ended: bool
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """`{ended}`, and `error` if any."""
        return {"ended": self.ended, "error": self.error} if self.error else {"ended": self.ended}


@value
class RunRecord:
    """One run as it is stored.

    `results` holds one entry for each of `hosts`, in their order. `ports` names the hosts whose port
    is not the registry's. `missed` tells since when (epoch) an agent says it does not know the run.
    `submitter` and its address are for the auth hook and never shown. `batches` are the hosts in the
    order in which they are begun (empty: all at once), `begun` how many batches have been; `cancels`
    what became of a cancel, by host. `places` are the places of final results in an event log that is
    not kept, `starts` those at which it was known that a script runs.
    """

    reqid: str
    script: str
    hosts: tuple[str, ...]
    args: tuple[str, ...] = ()
    mode: str = "sync"
    state: str = "running"
    complete: bool = False
    created: int = 0
    completed: int | None = None
    results: tuple[HostResult, ...] = ()
    expanded: bool = False
    encoding: str = "utf-8"
    ports: tuple[tuple[str, int], ...] = ()
    submitter: str = ""
    submitter_ip: str = ""
    missed: dict[str, int] = field(default_factory=dict)
    batches: tuple[tuple[str, ...], ...] = ()
    begun: int = 0
    cancels: tuple[CancelOutcome, ...] = ()
    places: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)

    @property
    def pending(self) -> tuple[str, ...]:
        """The hosts whose last word is still to come."""
        return tuple(each.host for each in self.results if not each.is_final)

    @property
    def counts(self) -> dict[str, int]:
        """How many hosts are in which state; they always sum to the hosts."""
        found: dict[str, int] = {}
        for each in self.results:
            found[each.state] = found.get(each.state, 0) + 1
        return found


def new_record(reqid: str, script: str, hosts: tuple[str, ...], **facts: Any) -> RunRecord:
    """A record of a run of which nothing has happened yet: every host is pending."""
    results = tuple(HostResult(host, script, "pending", reqid=reqid) for host in hosts)
    return RunRecord(reqid=reqid, script=script, hosts=hosts, results=results, **facts)


def encode_record(record: RunRecord) -> dict[str, Any]:
    """The record as the JSON document on disk: `results`, with all output, comes last."""
    document: dict[str, Any] = {
        "reqid": record.reqid,
        "script": record.script,
        "args": list(record.args),
        "mode": record.mode,
        "state": record.state,
        "complete": record.complete,
        "created": record.created,
    }
    if record.completed is not None:
        document["completed"] = record.completed
    if record.batches:
        document |= {"batches": [list(each) for each in record.batches], "begun": record.begun}
    if record.cancels:
        document["cancel"] = {each.host: each.as_json() for each in record.cancels}
    if record.places:
        document["places"] = record.places
    if record.starts:
        document["starts"] = record.starts
    return document | {
        "submitter": {"username": record.submitter, "source_ip": record.submitter_ip},
        "expanded": record.expanded,
        "encoding": record.encoding,
        "ports": dict(record.ports),
        "hosts": list(record.hosts),
        "pending": list(record.pending),
        "counts": record.counts,
        "results": [each.as_json() for each in record.results],
    }


def decode_record(document: Any) -> RunRecord:
    """The record from its JSON document; a host without a result is pending. Raises: MessageError."""
    found = read_object(document, "record")
    submitter = read_object(found.get("submitter") or {}, "submitter")
    ports = read_object(found.get("ports") or {}, "ports")
    hosts = texts_of(found, "hosts") or ()
    reqid, script = check_reqid(found.get("reqid")), text_of(found, "script")
    known = {each.host: each for each in _results(found.get("results"))}
    completed = found.get("completed")
    return RunRecord(
        reqid=reqid,
        script=script,
        hosts=hosts,
        args=texts_of(found, "args") or (),
        mode=_one_of(found, "mode", MODES),
        state=_one_of(found, "state", STATES),
        complete=bool(found.get("complete")),
        created=integer_of(found, "created", 0),
        completed=None if completed is None else integer_of(found, "completed", 0),
        results=tuple(known.get(host) or HostResult(host, script, "pending", reqid=reqid) for host in hosts),
        expanded=bool(found.get("expanded")),
        encoding=text_of(found, "encoding", "utf-8"),
        ports=tuple((host, integer_of(ports, host, 0)) for host in ports),
        submitter=text_of(submitter, "username", ""),
        submitter_ip=text_of(submitter, "source_ip", ""),
        batches=_batches(found.get("batches") or []),
        begun=integer_of(found, "begun", 0),
        cancels=cancels_of(found.get("cancel") or {}),
        places=_places(found.get("places") or {}),
        starts=_places(found.get("starts") or {}),
    )


def _results(found: Any) -> Iterator[HostResult]:
    if not isinstance(found, list):
        raise MessageError("results: expected an array", field="results")
    for each in found:
        yield HostResult.from_json(each)


def _one_of(found: dict[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    given = text_of(found, key)
    if given not in allowed:
        raise MessageError(f"{key}: {given[:40]!a} is none of {', '.join(allowed)}", field=key)
    return given


def cancels_of(found: Any) -> tuple[CancelOutcome, ...]:
    """The outcomes of a cancel from their JSON form, `{host: {ended, error?}}`. Raises: MessageError."""
    by_host = read_object(found, "cancel")
    outcomes = []
    for host in by_host:
        said = read_object(by_host[host], "cancel")
        outcomes.append(CancelOutcome(host, said.get("ended") is True, text_of(said, "error", "")))
    return tuple(outcomes)


def _batches(found: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(found, list):
        raise MessageError("batches: expected an array", field="batches")
    return tuple(texts_of({"batches": each}, "batches") or () for each in found)


def _places(found: Any) -> dict[str, int]:
    by_host = read_object(found, "places")
    return {host: integer_of(by_host, host, 0) for host in by_host}
