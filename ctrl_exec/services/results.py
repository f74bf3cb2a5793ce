"""Run records: durable before the first host is contacted, growing as hosts finish, never torn.

Owns `runs/<reqid>.json` (the record, whole or absent), `.events` beside it (one JSON line a host,
appended), `.lock` (held by the carrier as long as it lives; there only while the run is unfinished)
and the empty names in `runs/done/` that purge goes by. Must not know agents, callers or what a
script is.

    begin:   lock a temporary file → rename it to .lock → .events → .json, fsynced with its directory
    note:    one line appended to .events
    finish:  .json rewritten with everything → done/<completed, 8 hex>-<reqid> → .events, .lock gone
    adopt:   LOCK_EX on .lock, read .json and .events again; a torn last line is cut off
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress

from ctrl_exec.common import files
from ctrl_exec.common.clock import epoch_now
from ctrl_exec.common.errors import CtrlExecError, StorageError
from ctrl_exec.common.names import REQID, check_reqid
from ctrl_exec.common.value import replace
from ctrl_exec.services.records import decode_record, encode_record, merge_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from ctrl_exec.common.messages import HostResult
    from ctrl_exec.services.records import RunRecord

_DIRECTORY_MODE = 0o2770
_FILE_MODE = 0o660
RECORD_LIMIT_BYTES = 4 << 30
_LINE_LIMIT_BYTES = 1 << 30
_STALE_AFTER_S = 3600


class RunJournal:
    """The record of one run, open for writing by its carrier alone.

    It is inherited by fork; whoever does not go on with it calls `close`, which leaves the record
    to the other. Everything noted is also kept here, so that a full disk costs no answer.
    """

    def __init__(
        self, directory: str, record: RunRecord, fds: tuple[int, int], tell: Callable[[Sequence[str]], None]
    ) -> None:
        self._directory = directory
        self._record = record
        self._results = {each.host: each for each in record.results}
        self._missed = dict(record.missed)
        self._lock_fd, self._events_fd = fds
        self._tell = tell

    @property
    def reqid(self) -> str:
        """The id of the run."""
        return self._record.reqid

    @property
    def is_open(self) -> bool:
        """Whether this process is still the carrier."""
        return self._lock_fd >= 0

    @property
    def record(self) -> RunRecord:
        """The record as it stands."""
        return replace(
            self._record,
            results=tuple(self._results[host] for host in self._record.hosts),
            missed=dict(self._missed),
        )

    @property
    def pending(self) -> tuple[str, ...]:
        """The hosts whose last word is still to come."""
        return tuple(host for host in self._record.hosts if not self._results[host].is_final)

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that make this process the carrier."""
        return (self._lock_fd, self._events_fd)

    def result_of(self, host: str) -> HostResult:
        """What is known of one host."""
        return self._results[host]

    def note(self, result: HostResult) -> bool:
        """Keep what was heard of a host; False for a host of no concern or one that was final.

        Raises: StorageError if it can't be written; it is kept in memory all the same.
        """
        known = self._results.get(result.host)
        if known is None or known.is_final:
            return False
        self._results[result.host] = result
        self._missed.pop(result.host, None)
        self._append({"result": result.as_json()})
        return True

    def note_missed(self, host: str, at: int) -> int:
        """Keep that the agent does not know the run; gives since when it says so. Raises: StorageError."""
        since = min(at, self._missed.get(host, at))  # a clock may have been set back
        if since != self._missed.get(host):
            self._missed[host] = since
            self._append({"missed": host, "at": at})
        return since

    def _append(self, event: dict[str, Any]) -> None:
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        path = _path(self._directory, self._record.reqid, ".events")
        try:
            end = os.fstat(self._events_fd).st_size
            try:
                files.write_all(self._events_fd, line)
            except OSError:
                os.ftruncate(self._events_fd, end)  # a part of a line would spoil the next one
                raise
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=path) from error

    def write(self, state: str) -> RunRecord:
        """Rewrite the record in a state that is not its end. Raises: StorageError."""
        self._record = replace(self.record, state=state)
        self._save(self._record)
        self._tell((self.reqid,))
        return self._record

    def finish(self, state: str, now: int | None = None) -> RunRecord:
        """Write the complete record durably and let it go.

        Raises: StorageError; the record then stays unfinished and this process its carrier.
        """
        completed = epoch_now() if now is None else now
        record = replace(self.record, state=state, complete=True, completed=completed)
        self._save(record)
        self._record = record
        with suppress(StorageError):  # the nightly sweep makes a marker that could not be made now
            _mark_done(self._directory, record.reqid, completed)
        with suppress(StorageError):
            _remove_traces(self._directory, record.reqid)
        self._tell((record.reqid,))
        self.close()
        return record

    def _save(self, record: RunRecord) -> None:
        files.write_json(_path(self._directory, record.reqid, ".json"), encode_record(record), _FILE_MODE)

    def close(self) -> None:
        """Let the record go here; the lock ends when every process that inherited it has done so."""
        for fd in (self._lock_fd, self._events_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._events_fd = -1


class ResultStore:
    """The run records below one directory.

    `on_change` is told the ids of records that were begun, rewritten or removed, when they are; what
    it does must not fail.
    """

    def __init__(
        self,
        directory: str,
        retention_s: int = 86_400,
        *,
        on_change: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self._directory = directory
        self._retention_s = retention_s
        self._tell = on_change or (lambda _: None)

    def begin(self, record: RunRecord) -> RunJournal:
        """Make the record durable and this process its carrier.

        Raises: StorageError, and then nothing of it is left behind.
        """
        made: list[str] = []
        fds: list[int] = []
        try:
            self._make_dirs()
            self._lay_down(record, made, fds)
        except BaseException as error:
            _close(fds)
            for path in made:
                with suppress(OSError):
                    os.unlink(path)
            if isinstance(error, FileExistsError):
                raise StorageError(
                    "a run of that id exists", path=self._path(record.reqid, ".json")
                ) from error
            raise
        self._tell((record.reqid,))
        return RunJournal(self._directory, record, (fds[0], fds[1]), self._tell)

    def _lay_down(self, record: RunRecord, made: list[str], fds: list[int]) -> None:
        # locked under another name first: there is no moment at which the record has no carrier
        lock, first_name = self._path(record.reqid, ".lock"), self._path(record.reqid, ".lock", ".tmp-")
        fds.append(files.open_lock(first_name, _FILE_MODE))
        made.append(first_name)
        files.try_lock(fds[0])
        try:
            os.link(first_name, lock, follow_symlinks=False)
            made.append(lock)
            os.unlink(first_name)
        except FileExistsError:
            raise
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=lock) from error
        events = self._path(record.reqid, ".events")
        fds.append(_open_events(events))
        made.append(events)
        files.write_json(self._path(record.reqid, ".json"), encode_record(record), _FILE_MODE, exclusive=True)

    def load(self, reqid: str) -> RunRecord | None:
        """The record with what its events add; None if there is none. Raises: StorageError."""
        record = self._read(check_reqid(reqid))
        if record is None:
            return None
        if record.complete:
            return record
        merged = merge_events(record, _lines(self._path(reqid, ".events")))
        if os.path.exists(self._path(reqid, ".lock")):
            return merged
        # finished between the two readings: the events are gone, the record has it all
        return self._read(reqid) or merged

    def _read(self, reqid: str) -> RunRecord | None:
        path = self._path(reqid, ".json")
        document = files.read_json(path, RECORD_LIMIT_BYTES)
        if document is None:
            return None
        try:
            return decode_record(document)
        except CtrlExecError as error:
            raise StorageError(f"is no run record ({error})", path=path) from error

    def is_carried(self, reqid: str) -> bool:
        """Whether some process carries the run. Raises: StorageError."""
        path = self._path(check_reqid(reqid), ".lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=path) from error
        try:
            return not files.try_lock(fd, shared=True)
        finally:
            os.close(fd)

    def adopt(self, reqid: str) -> RunJournal | None:
        """Become the carrier of an unfinished run; None if it has one, is complete, or is not there.

        Raises: StorageError.
        """
        if not os.path.exists(self._path(check_reqid(reqid), ".json")):
            return None
        lock_fd = self._lock_again(reqid)
        if lock_fd is None:
            return None
        fds = [lock_fd]
        try:
            record = self._read(reqid)
            if record is not None and not record.complete:
                return self._open_again(record, fds)
            if record is not None:
                _remove_traces(self._directory, reqid)
        except BaseException:
            _close(fds)
            raise
        _close(fds)
        return None

    def _open_again(self, record: RunRecord, fds: list[int]) -> RunJournal:
        path = self._path(record.reqid, ".events")
        fds.append(_open_events(path))
        try:
            _cut_torn_line(fds[1])
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=path) from error
        merged = merge_events(record, _lines(path))
        return RunJournal(self._directory, merged, (fds[0], fds[1]), self._tell)

    def _lock_again(self, reqid: str) -> int | None:
        path = self._path(reqid, ".lock")
        for _ in range(8):
            fd = files.open_lock(path, _FILE_MODE)
            if not files.try_lock(fd):
                os.close(fd)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                    return fd
            os.close(fd)  # its last carrier removed it while we were opening it
        return None

    def unfinished(self) -> tuple[str, ...]:
        """The ids of all runs that are not complete, carried or not. Raises: StorageError."""
        stems = (name.removesuffix(".lock") for name in _names(self._directory) if name.endswith(".lock"))
        return tuple(sorted(stem for stem in stems if REQID.fullmatch(stem)))

    def purge(self, now: int | None = None) -> int:
        """Remove the records completed longer ago than the retention; gives how many.

        Goes by the names in done/ alone, so that a million of records cost one reading of a directory.
        Raises: StorageError.
        """
        done = os.path.join(self._directory, "done")
        latest = (epoch_now() if now is None else now) - self._retention_s
        if latest < 0:
            return 0
        cutoff = f"{min(latest, 0xFFFFFFFF):08x}"
        gone: list[str] = []
        try:
            for name in _names(done):
                completed, _, reqid = name.partition("-")
                if len(completed) == 8 and completed <= cutoff and REQID.fullmatch(reqid):
                    for suffix in (".json", ".events", ".cancel", ".lock"):
                        files.remove(self._path(reqid, suffix))
                    files.remove(os.path.join(done, name))
                    gone.append(reqid)
        finally:
            self._tell(gone)
        return len(gone)

    def sweep(self, now: float | None = None) -> int:
        """Put right what crashes left: missing markers and locks, half-written and orphaned files.

        Gives how many things were put right. Raises: StorageError.
        """
        moment = time.time() if now is None else now
        self._make_dirs()
        names = set(_names(self._directory))
        marked = {name.partition("-")[2] for name in _names(os.path.join(self._directory, "done"))}
        count = sum(self._sweep_record(name.removesuffix(".json"), marked, names) for name in _records(names))
        count += sum(self._sweep_orphan(name, names, moment) for name in names)
        return count

    def _sweep_record(self, reqid: str, marked: set[str], names: set[str]) -> int:
        if reqid in marked:
            return 0
        try:
            record = self.load(reqid)
        except StorageError:  # a record that is none stays for a person to look at
            return 0
        if record is None:
            return 0
        if record.complete:
            _mark_done(self._directory, reqid, record.completed or 0)
            return 1
        if reqid + ".lock" in names:
            return 0
        os.close(files.open_lock(self._path(reqid, ".lock"), _FILE_MODE))
        return 1

    def _sweep_orphan(self, name: str, names: set[str], moment: float) -> int:
        stem, dot, suffix = name.rpartition(".")
        is_orphan = dot and suffix in ("lock", "events", "cancel") and stem + ".json" not in names
        if not (files.is_temporary(name) or is_orphan):
            return 0
        path = os.path.join(self._directory, name)
        with suppress(FileNotFoundError):
            if os.stat(path, follow_symlinks=False).st_mtime < moment - _STALE_AFTER_S:
                return int(files.remove(path))
        return 0

    def _make_dirs(self) -> None:
        done = os.path.join(self._directory, "done")
        if not os.path.isdir(done):
            files.make_dirs(done, _DIRECTORY_MODE)

    def _path(self, reqid: str, suffix: str, prefix: str = "") -> str:
        return _path(self._directory, reqid, suffix, prefix)


def _lines(path: str) -> Iterator[bytes]:
    """The whole lines of the event log; the last one only if its end was written."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    with open(fd, "rb") as stream:
        while line := stream.readline(_LINE_LIMIT_BYTES):
            if line.endswith(b"\n"):
                yield line


def _open_events(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, _FILE_MODE)
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    with suppress(OSError):
        os.fchmod(fd, _FILE_MODE)
    return fd


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _cut_torn_line(fd: int) -> None:
    """Cut off what follows the last line end; the next line would be lost with it. Raises: OSError."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(fd, start + newline + 1)
            return
        end = start
    os.ftruncate(fd, 0)


def _remove_traces(directory: str, reqid: str) -> None:
    """Remove what a complete record needs no more; the lock last, for by it what is left is found."""
    for suffix in (".events", ".cancel", ".lock"):
        files.remove(_path(directory, reqid, suffix))


def _mark_done(directory: str, reqid: str, completed: int) -> None:
    path = os.path.join(directory, "done", f"{completed:08x}-{check_reqid(reqid)}")
    os.close(files.open_lock(path, _FILE_MODE))


def _path(directory: str, reqid: str, suffix: str, prefix: str = "") -> str:
    return os.path.join(directory, f"{prefix}{check_reqid(reqid)}{suffix}")


def _records(names: set[str]) -> Iterator[str]:
    return (name for name in names if name.endswith(".json") and REQID.fullmatch(name.removesuffix(".json")))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=directory) from error
