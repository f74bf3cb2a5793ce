"""The spool: a durable record of every run, and the agent's own lock on every script.

Owns `<state_dir>/runs`: `<dispatcher id>/<reqid>.json` and `.locks/<script>`. A record belongs to
the dispatcher that ordered the run and is given to nobody else. Knows nothing of how a script runs.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ctrl_exec.common import files
from ctrl_exec.common.clock import iso_z, utc_now
from ctrl_exec.common.errors import CtrlExecError, StorageError
from ctrl_exec.common.messages import encode
from ctrl_exec.common.names import check_dispatcher_id, check_reqid, check_script

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RETENTION_S = 24 * 3600
PURGE_EVERY_S = 3600
RUNNING, DONE, LOST = "running", "done", "lost"
_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750
_LOCKS, _PURGED = ".locks", ".purged"
_LIMIT_BYTES = 1 << 30
_CARRIER = "carrier"  # the key that says which process carries the run; ours alone, never shown


class Spool:
    """The records and locks below one directory."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def begin(self, owner: str, reqid: str, script: str) -> dict[str, Any]:
        """Record, durably, that this process is about to run the script; gives the record, for `finish`.

        Raises: FileExistsError if there is a record of that id and script, or the run of that id goes
        on; StorageError; then nothing may be run.
        """
        path = self._path(owner, reqid)
        files.make_dirs(os.path.dirname(path), _DIRECTORY_MODE)
        record = {
            "reqid": reqid, "status": RUNNING, "script": script, "owner": owner, "started": iso_z(utc_now()),
        }  # fmt: skip
        if self._is_void(owner, reqid, script):
            files.remove(path)
        self._write(path, record | {_CARRIER: _identity(os.getpid())}, is_first=True)
        return record

    def _is_void(self, owner: str, reqid: str, script: str) -> bool:
        """Whether what stands in the record's place may go: damaged, its time over, another script's end."""
        try:
            record = self.load(owner, reqid, time.time())
        except StorageError:
            return True
        return record is None or (record.get("status") != RUNNING and record.get("script") != script)

    def finish(self, begun: dict[str, Any], answer: dict[str, Any]) -> None:
        """Record how the run ended: `answer` is what the dispatcher gets, without its ids.

        Where the disk has no room for the output, the record is kept without it.

        Raises: StorageError if not even that could be written.
        """
        path = self._path(begun["owner"], begun["reqid"])
        record = begun | {"status": DONE, "finished": iso_z(utc_now())} | answer
        try:
            self._write(path, record)
        except StorageError as error:
            note = f"output could not be kept: {error}"
            self._write(path, record | {"stdout": "", "stderr": "", "error": record.get("error") or note})

    def load(self, owner: str, reqid: str, now: float) -> dict[str, Any] | None:
        """The record as its owner may see it, None if there is none or its time is over.

        Raises: StorageError if it can't be read.
        """
        path = self._path(owner, reqid)
        try:
            ended_at = os.stat(path, follow_symlinks=False).st_mtime
            record = files.read_json(path, _LIMIT_BYTES)
        except FileNotFoundError:
            return None
        if not isinstance(record, dict):
            return None
        carrier = record.pop(_CARRIER, "")
        if record.get("status") == RUNNING:
            return record if is_alive(carrier) else record | {"status": LOST}
        return record if ended_at > now - RETENTION_S else None

    def is_running(self, owner: str, reqid: str, now: float) -> bool:
        """Whether a run of that request id is going on; an unreadable record is none."""
        try:
            record = self.load(owner, reqid, now)
        except StorageError:
            return False
        return record is not None and record.get("status") == RUNNING

    def lock(self, script: str) -> int | None:
        """A descriptor that holds the script's lock, None if someone else does.

        It is held until every copy of the descriptor is closed, or `unlock`.

        Raises: StorageError.
        """
        directory = f"{self.directory}/{_LOCKS}"
        files.make_dirs(directory, _DIRECTORY_MODE)
        fd = files.open_lock(f"{directory}/{check_script(script)}", _FILE_MODE)
        if files.try_lock(fd):
            return fd
        os.close(fd)
        return None

    def is_purge_due(self, now: float) -> bool:
        """Whether the last purge is an hour old; says so once, to the first who asks."""
        marker = f"{self.directory}/{_PURGED}"
        try:
            if os.stat(marker).st_mtime > now - PURGE_EVERY_S:
                return False
        except FileNotFoundError:
            pass
        try:
            files.make_dirs(self.directory, _DIRECTORY_MODE)
            files.write_atomic(marker, b"", _FILE_MODE)
        except StorageError:
            return False
        return True

    def purge(self, now: float) -> int:
        """Remove records whose time is over, and what killed writers left; how many."""
        removed = 0
        for owner in _entries(self.directory):
            folder = f"{self.directory}/{owner}"
            if owner.startswith(".") or not os.path.isdir(folder):
                continue
            for name in _entries(folder):
                removed += self._purge_one(owner, name, now)
        return removed

    def _purge_one(self, owner: str, name: str, now: float) -> bool:
        path = f"{self.directory}/{owner}/{name}"
        with suppress(OSError, CtrlExecError):
            if os.stat(path, follow_symlinks=False).st_mtime > now - RETENTION_S:
                return False
            if not files.is_temporary(name) and self.is_running(owner, name.removesuffix(".json"), now):
                return False
            return files.remove(path)
        return False

    def _path(self, owner: str, reqid: str) -> str:
        return f"{self.directory}/{check_dispatcher_id(owner)}/{check_reqid(reqid)}.json"

    @staticmethod
    def _write(path: str, record: dict[str, Any], *, is_first: bool = False) -> None:
        files.write_atomic(path, encode(record), _FILE_MODE, exclusive=is_first)


def unlock(fd: int) -> None:
    """Free the lock, also for copies of the descriptor that an escaped descendant still has."""
    import fcntl

    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def is_alive(carrier: object) -> bool:
    """Whether the process of that identity still runs, not another one under its number."""
    if not isinstance(carrier, str):
        return False
    number, _, _ = carrier.partition("-")
    return number.isascii() and number.isdigit() and _identity(int(number)) == carrier


def _identity(pid: int) -> str:
    """`<pid>-<start in ticks>-<boot id>`, empty if there is no such process. Source: proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            after_name = stat.read(4096).rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            return f"{pid}-{int(after_name[19])}-{boot.read().strip()}"
    except (OSError, ValueError, IndexError):
        return ""


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
