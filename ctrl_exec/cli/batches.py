"""The batches of a run as a person sees them: how far each is, and why the rest is not begun.

Owns these lines. Must not know how the run came to us, or when a batch is begun.
"""

from __future__ import annotations

from ctrl_exec.cli.output import printable
from ctrl_exec.cli.results import counted, folded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from ctrl_exec.common.messages import HostResult


def batch_lines(document: Mapping[str, Any], results: Sequence[HostResult]) -> Iterator[str]:
    """Give a line a batch, `batch 2 of 4  running  web-[11-20]: 3 ok, 7 running`; and why it stopped."""
    batches, found = document["batches"], {each.host: each for each in results}
    is_first_open = True
    width = max(map(len, _WORDS))
    for number, batch in enumerate(batches, start=1):
        members = [found[host] for host in batch["hosts"] if host in found]
        word = _state(batch, members)
        if word == "waiting" and is_first_open and number > 1 and not document["complete"]:
            is_first_open = False
            word = "pausing" if _is_over(found, batches[number - 2]["hosts"]) else word
        names = printable(folded(batch["hosts"]))
        counts = f": {counted(members)}" if batch["begun"] else ""
        yield f"batch {number} of {len(batches)}  {word.ljust(width)}  {names}{counts}"
    reason = _reason(batches, found)
    if reason:
        yield f"stopped: {printable(reason)}"


_WORDS = ("done", "running", "pausing", "waiting", "stopped")


def _state(batch: Mapping[str, Any], members: Sequence[HostResult]) -> str:
    is_over = all(each.is_final for each in members)
    if batch["begun"]:
        return "done" if is_over else "running"
    return "stopped" if is_over and members else "waiting"


def _is_over(found: Mapping[str, HostResult], hosts: Iterable[str]) -> bool:
    return all(found[host].is_final for host in hosts if host in found)


def _reason(batches: Iterable[Mapping[str, Any]], found: Mapping[str, HostResult]) -> str:
    """Why batches were not begun and will not be: the hosts of such a one all have it as their error."""
    for batch in batches:
        if not batch["begun"]:
            for host in batch["hosts"]:
                if host in found and found[host].is_final:
                    return found[host].error
    return ""
