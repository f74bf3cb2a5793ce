"""The head of a run record: all of it but what the hosts said, read without reading their output.

Owns how much of the file that takes: a record is written with `results` last (`services.records`),
so that one of 256 MiB is listed as fast as one of a kilobyte. Must not know who lists them.
"""

from __future__ import annotations

import os

from ctrl_exec.common.errors import CtrlExecError
from ctrl_exec.common.json_text import loads
from ctrl_exec.common.messages import integer_of, read_object, text_of, texts_of
from ctrl_exec.common.names import check_reqid
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec.services.records import MODES, STATES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIRST_BYTES = 8192
# 10,000 names of 253 characters, once as hosts and once as pending, and 512 KiB of escaped arguments
HEAD_LIMIT_BYTES = 16 << 20
_LATEST = 1 << 53
# no string of JSON holds a bare line end: this is the key of the record itself
_RESULTS = b'\n "results": ['


@value
class RunHead:
    """What a list of runs shows of one; `counts` only when it is complete and was counted.

    `size` is about how many bytes it takes to show it.
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
    counts: dict[str, int] | None
    submitter: str
    size: int
    submitter_ip: str = ""


def read_head(directory: str, reqid: str) -> RunHead | None:
    """The head of the record; None if there is none, or nothing that is one. Raises: OSError."""
    path = os.path.join(directory, check_reqid(reqid) + ".json")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        found = _read_to_results(fd)
    finally:
        os.close(fd)
    with suppress(ValueError, CtrlExecError, RecursionError):
        document = read_object(loads(found), "record")
        if document.get("reqid") == reqid:
            return _decode(document, len(found))
    return None


def _read_to_results(fd: int) -> bytes:
    """The document without its results, if they are where we write them; else all of it, if it is small."""
    content = os.read(fd, _FIRST_BYTES)
    searched = 0
    while True:
        at = content.find(_RESULTS, searched)
        if at >= 0:
            return content[:at].rstrip().removesuffix(b",") + b"}"
        searched = max(0, len(content) - len(_RESULTS))
        more = os.read(fd, 1 << 20) if len(content) < HEAD_LIMIT_BYTES else b""
        if not more:
            return content
        content += more


def _decode(document: dict[str, Any], size: int) -> RunHead:
    """Raises: MessageError, ValueError."""
    completed = document.get("completed")
    submitter = read_object(document.get("submitter") or {}, "submitter")
    mode, state = text_of(document, "mode"), text_of(document, "state")
    script, username = text_of(document, "script"), text_of(submitter, "username", "")
    created, hosts = integer_of(document, "created", 0), texts_of(document, "hosts") or ()
    "\n".join((script, username, *hosts)).encode()  # a lone surrogate is nothing that we wrote
    if mode not in MODES or state not in STATES or not 0 <= created <= _LATEST:
        raise ValueError(state)
    is_complete = bool(document.get("complete"))
    return RunHead(
        reqid=text_of(document, "reqid"),
        script=script,
        args=texts_of(document, "args") or (),
        mode=mode,
        state=state,
        complete=is_complete,
        created=created,
        completed=None if completed is None else integer_of(document, "completed", 0),
        hosts=hosts,
        counts=_counts(document.get("counts")) if is_complete else None,
        submitter=username,
        size=size,
        submitter_ip=text_of(submitter, "source_ip", ""),
    )


def _counts(found: Any) -> dict[str, int] | None:
    if not isinstance(found, dict) or not all(type(count) is int for count in found.values()):
        return None
    return dict(found)
