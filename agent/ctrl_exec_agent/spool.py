"""The spool: a durable record of every run, and the agent's own lock on every script.

Owns `<state_dir>/runs`: `<dispatcher id>/<reqid>.json` and `.locks/<script>`. Beside a record may be
`<reqid>.stdout` and `.stderr`, the output that the record itself does not hold; `.script`, which process the
script is; and `.cancel`, that it is to end. A record belongs to the dispatcher that ordered the run and
is given to nobody else. Knows nothing of how a script runs.
"""

from __future__ import annotations

import os
import time

from ctrl_exec.common import files
from ctrl_exec.common.clock import iso_z, utc_now
from ctrl_exec.common.errors import CtrlExecError, StorageError
from ctrl_exec.common.messages import encode
from ctrl_exec.common.names import check_dispatcher_id, check_reqid, check_script
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import value
from ctrl_exec_agent.kept_output import FiledOutput, Outputs, TextOutput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

RETENTION_S = 24 * 3600
PURGE_EVERY_S = 3600
RUNNING, DONE, LOST = "running", "done", "lost"
_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750
_LOCKS, _PURGED = ".locks", ".purged"
_LIMIT_BYTES = 1 << 30
_CARRIER = "carrier"  # which process carries the run; these keys are ours alone, never shown
_HEEDS_CANCEL = (
    "heeds_cancel"  # that it takes the signal of a cancel, which would kill one of an older version
)
_FILES = "files"  # which streams are in files beside the record
LEFT_BEHIND = "left_behind"  # the key that says that something of the script could not be ended
STREAMS = ("stdout", "stderr")
_BESIDE = (*STREAMS, "script", "cancel")


@value
class Found:
    """A record as its owner may see it, who carries the run, and its output wherever that is.

    `can_cancel` is false where an older version of ours carries it.
    """

    record: dict[str, Any]
    outputs: Outputs
    carrier: str = ""
    can_cancel: bool = False

    @property
    def status(self) -> object:
        """running, done or lost."""
        return self.record.get("status")

    @property
    def is_gone(self) -> bool:
        """Whether nothing of the script is left, once the run is done."""
        return not self.record.get(LEFT_BEHIND)

    def about(self) -> dict[str, Any]:
        """The record without the output."""
        return {key: each for key, each in self.record.items() if key not in STREAMS}


class Spool:
    """The records and locks below one directory."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def begin(self, owner: str, reqid: str, script: str, encoding: str | None = None) -> dict[str, Any]:
        """Record, durably, that this process is about to run the script; gives the record, for `finish`.

        It has to heed `ask_cancel`.

        Raises: FileExistsError if there is a record of that id and script, or the run of that id goes
        on; StorageError; then nothing may be run.
        """
        path = self._path(owner, reqid)
        files.make_dirs(os.path.dirname(path), _DIRECTORY_MODE)
        record = {
            "reqid": reqid, "status": RUNNING, "script": script, "owner": owner, "started": iso_z(utc_now()),
        }  # fmt: skip
        if encoding == "base64":
            record["encoding"] = encoding
        if os.path.lexists(path) and self._is_void(owner, reqid, script):
            self._remove(path)
        ours = {_CARRIER: identity(os.getpid()), _HEEDS_CANCEL: True}
        self._write(path, record | ours, is_first=True)
        return record

    def _is_void(self, owner: str, reqid: str, script: str) -> bool:
        """Whether what stands in the record's place may go: damaged, its time over, another script's end."""
        try:
            record = self.load(owner, reqid, time.time())
        except StorageError:
            return True
        return record is None or (record.get("status") != RUNNING and record.get("script") != script)

    def finish(self, begun: dict[str, Any], answer: dict[str, Any], filed: Iterable[str] = ()) -> None:
        """Record how the run ended: `answer` is what the dispatcher gets, without its ids.

        The output of the streams in `filed` is in their files, that of the others in the answer.

        Where the disk has no room for the output, the record is kept without it.

        Raises: StorageError if not even that could be written.
        """
        path = self._path(begun["owner"], begun["reqid"])
        record = begun | {"status": DONE, "finished": iso_z(utc_now())} | answer
        if filed:
            record[_FILES] = list(filed)
        try:
            self._write(path, record)
        except StorageError as error:
            note = f"output could not be kept: {error}"
            bare = {stream: "" for stream in STREAMS if stream not in filed}
            self._write(path, record | bare | {"error": record.get("error") or note})

    def load(self, owner: str, reqid: str, now: float) -> dict[str, Any] | None:
        """The record as its owner may see it, None if there is none or its time is over.

        Raises: StorageError if it can't be read.
        """
        found = self.find(owner, reqid, now)
        return None if found is None else found.record

    def find(self, owner: str, reqid: str, now: float) -> Found | None:
        """As `load`, with the output. Raises: StorageError if it can't be read."""
        path = self._path(owner, reqid)
        try:
            ended_at = os.stat(path, follow_symlinks=False).st_mtime
            record = files.read_json(path, _LIMIT_BYTES)
        except FileNotFoundError:
            return None
        if not isinstance(record, dict):
            return None
        carrier, heeds = record.pop(_CARRIER, ""), record.pop(_HEEDS_CANCEL, False)
        filed = record.pop(_FILES, ())
        if record.get("status") == RUNNING:
            filed = STREAMS
            if not is_alive(carrier):
                record["status"] = LOST
        elif ended_at <= now - RETENTION_S:
            return None
        encoding = record.get("encoding")
        outputs: dict[str, Any] = {
            stream: FiledOutput(_beside(path, stream))
            if stream in filed
            else TextOutput(str(record.get(stream) or ""), encoding)
            for stream in STREAMS
        }
        return Found(record, Outputs(**outputs, encoding=encoding), str(carrier), bool(heeds))

    def output_paths(self, owner: str, reqid: str) -> tuple[str, str]:
        """Where the output of a run is put that does not fit into its record."""
        path = self._path(owner, reqid)
        return _beside(path, "stdout"), _beside(path, "stderr")

    def note_script(self, owner: str, reqid: str, pid: int) -> None:
        """Leave word of the script's process, for when its carrier is killed. Raises: StorageError."""
        known = identity(pid).encode()
        files.write_atomic(_beside(self._path(owner, reqid), "script"), known, _FILE_MODE, durable=False)

    def script_of(self, owner: str, reqid: str) -> str:
        """The identity of the script's process as it was noted, '' if it was not."""
        try:
            noted = files.read_bounded(_beside(self._path(owner, reqid), "script"), 256)
        except (FileNotFoundError, StorageError):
            return ""
        return noted.decode("ascii", "replace")

    def ask_cancel(self, owner: str, reqid: str) -> None:
        """Leave word that the run is to end. Raises: StorageError."""
        files.write_atomic(_beside(self._path(owner, reqid), "cancel"), b"", _FILE_MODE, durable=False)

    def is_cancel_asked(self, owner: str, reqid: str) -> bool:
        """Whether somebody has asked for the end of the run."""
        return os.path.lexists(_beside(self._path(owner, reqid), "cancel"))

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
            if files.is_temporary(name):
                return files.remove(path)
            stem, _, kind = name.rpartition(".")
            if kind in _BESIDE:  # it goes with its record; without one it is what a crash has left
                return not os.path.lexists(f"{self.directory}/{owner}/{stem}.json") and files.remove(path)
            if self.is_running(owner, stem, now):
                return False
            return self._remove(path)
        return False

    @staticmethod
    def _remove(path: str) -> bool:
        """Remove the record and what is beside it; whether there was one."""
        for kind in _BESIDE:
            files.remove(_beside(path, kind))
        return files.remove(path)

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
    return number.isascii() and number.isdigit() and identity(int(number)) == carrier


def _beside(path: str, kind: str) -> str:
    return f"{path.removesuffix('.json')}.{kind}"


def identity(pid: int) -> str:
    """`<pid>-<start in ticks>-<boot id>`, empty if there is no such process. Source: proc(5)."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            after_name = os.read(fd, 4096).rpartition(b")")[2].split()
        finally:
            os.close(fd)
        return f"{pid}-{int(after_name[19])}-{_BOOT}"
    except (OSError, ValueError, IndexError):
        return ""


def _boot() -> str:
    """The id of this boot of the machine; bytes, for the text layer would load a codec in every child."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as boot:
        return boot.read(64).strip().decode()
    return ""


_BOOT = _boot()


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
