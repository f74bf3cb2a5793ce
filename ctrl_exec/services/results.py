"""Run records: durable before the first host is contacted, growing as hosts finish, never torn.

Owns `runs/<reqid>.json` (the record, whole or absent), `.events` beside it (JSON lines, appended;
kept with the record where output was told piece by piece), `.lock` (held by the carrier as long as it
lives; there only while the run is unfinished), `.cancel` (somebody wishes it cancelled) and the empty
names in `runs/done/` that purge goes by. Must not know agents, callers or what a script is.

    begin:   lock a temporary file → rename it to .lock → .events → .json, fsynced with its directory
    note:    one line appended to .events
    finish:  .json rewritten with everything → done/<completed, 8 hex>-<reqid> → .events (perhaps), .lock gone
    adopt:   LOCK_EX on .lock, read .json and .events again; a torn last line is cut off
"""

from __future__ import annotations

import os
import time

from ctrl_exec.common import files
from ctrl_exec.common.clock import epoch_now
from ctrl_exec.common.errors import CtrlExecError, StorageError
from ctrl_exec.common.names import REQID, check_reqid
from ctrl_exec.common.suppression import suppress
from ctrl_exec.services.events import EventLog
from ctrl_exec.services.journal import FILE_MODE, RunJournal, mark_done, path_of, remove_traces
from ctrl_exec.services.progress import Progress, merge_events
from ctrl_exec.services.record_heads import read_head
from ctrl_exec.services.record_text import record_text
from ctrl_exec.services.records import decode_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ctrl_exec.services.record_heads import RunHead
    from ctrl_exec.services.records import RunRecord

_DIRECTORY_MODE = 0o2770
RECORD_LIMIT_BYTES = 4 << 30
_LINE_LIMIT_BYTES = 1 << 30
_STALE_AFTER_S = 3600
_SUFFIXES = (".json", ".events", ".cancel", ".lock")
_FEW = 1000
"""Up to so many records are purged without a look at what files there are, and files one after the other."""
_AT_ONCE = 4
_SMALL_BYTES = 1 << 20  # a record that is read for what little it says more


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
        return RunJournal(self._directory, Progress(record), (fds[0], fds[1]), self._tell)

    def _lay_down(self, record: RunRecord, made: list[str], fds: list[int]) -> None:
        # locked under another name first: there is no moment at which the record has no carrier
        lock, first_name = self._path(record.reqid, ".lock"), self._path(record.reqid, ".lock", ".tmp-")
        fds.append(files.open_lock(first_name, FILE_MODE))
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
        path = self._path(record.reqid, ".json")
        files.write_atomic(path, record_text(record), FILE_MODE, exclusive=True)

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

    def head(self, reqid: str) -> RunHead | None:
        """The record without anything that hosts said; None if there is none. Raises: StorageError."""
        try:
            return read_head(self._directory, reqid)
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self._path(reqid, ".json")) from error

    def open_log(self, reqid: str, after: int = 0) -> EventLog | None:
        """The event log of a run from a place on; None if it is not kept. Raises: StorageError."""
        try:
            return EventLog(self._path(check_reqid(reqid), ".events"), after)
        except FileNotFoundError:
            return None

    def ask_to_cancel(self, reqid: str) -> None:
        """Leave the wish that the run be cancelled where its carrier looks; durable. Raises: StorageError."""
        path = self._path(check_reqid(reqid), ".cancel")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, FILE_MODE)
            try:
                os.fchmod(fd, FILE_MODE)
                os.fsync(fd)
            finally:
                os.close(fd)
            directory = files.open_dir(self._directory)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except FileExistsError:  # somebody wishes it already
            return
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=path) from error

    def forget_cancel(self, reqid: str) -> None:
        """Remove a wish that came after the end. Raises: StorageError."""
        files.remove(self._path(check_reqid(reqid), ".cancel"))

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
            head = self.head(reqid)
            if head is not None and head.complete and self._is_large(reqid):
                # finished meanwhile: what its hosts said, perhaps a gigabyte, is of no concern here
                remove_traces(self._directory, reqid, keeps_log=True)
            else:
                record = self._read(reqid)
                if record is not None and not record.complete:
                    return self._open_again(record, fds)
                if record is not None:
                    remove_traces(self._directory, reqid, keeps_log=not record.places)
        except BaseException:
            _close(fds)
            raise
        _close(fds)
        return None

    def _is_large(self, reqid: str) -> bool:
        with suppress(FileNotFoundError):
            return os.stat(self._path(reqid, ".json")).st_size > _SMALL_BYTES
        return False

    def _open_again(self, record: RunRecord, fds: list[int]) -> RunJournal:
        path = self._path(record.reqid, ".events")
        fds.append(_open_events(path))
        try:
            _cut_torn_line(fds[1])
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=path) from error
        progress = Progress(record)
        log = EventLog(path)
        try:
            progress.read(log.lines())
        finally:
            log.close()
        return RunJournal(self._directory, progress, (fds[0], fds[1]), self._tell)

    def _lock_again(self, reqid: str) -> int | None:
        path = self._path(reqid, ".lock")
        for _ in range(8):
            fd = files.open_lock(path, FILE_MODE)
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
        # above all names of that second, and below those of the next
        bound = f"{min(latest, 0xFFFFFFFF):08x}-g"
        expired: list[tuple[str, str]] = []
        for name in _names(done):
            if name < bound:
                completed, _, reqid = name.partition("-")
                if len(completed) == 8 and REQID.fullmatch(reqid):
                    expired.append((name, reqid))
        gone: list[str] = []
        if expired:
            try:
                self._remove_all(expired, gone)
            except OSError as error:
                raise StorageError(error.strerror or str(error), path=self._directory) from error
            finally:
                self._tell(gone)
        return len(gone)

    def _remove_all(self, expired: list[tuple[str, str]], gone: list[str]) -> None:
        """Remove what there is of these records, their names in done/ last. Raises: OSError."""
        runs = files.open_dir(self._directory)
        try:
            _unlink_all(self._files_of({reqid for _, reqid in expired}), runs)
            for name, reqid in expired:
                _unlink(f"done/{name}", runs)
                gone.append(reqid)
        finally:
            os.close(runs)

    def _files_of(self, reqids: set[str]) -> list[str]:
        """The names of all files that may be there of these records. Raises: OSError."""
        if len(reqids) <= _FEW:
            return [reqid + suffix for reqid in reqids for suffix in _SUFFIXES]
        # one look at the directory costs less than asking three times each for files that few have;
        # in the order of their inodes, so that what lies together on the disk is freed together
        with os.scandir(self._directory) as entries:
            found = [(each.inode(), each.name) for each in entries if each.name.partition(".")[0] in reqids]
        return [name for _, name in sorted(found)]

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
            mark_done(self._directory, reqid, record.completed or 0)
            return 1
        if reqid + ".lock" in names:
            return 0
        os.close(files.open_lock(self._path(reqid, ".lock"), FILE_MODE))
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
        files.make_dirs(f"{self._directory}/done", _DIRECTORY_MODE)

    def _path(self, reqid: str, suffix: str, prefix: str = "") -> str:
        return path_of(self._directory, reqid, suffix, prefix)


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
        fd = os.open(path, flags, FILE_MODE)
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=path) from error
    with suppress(OSError):
        os.fchmod(fd, FILE_MODE)
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


def _records(names: set[str]) -> Iterator[str]:
    return (name for name in names if name.endswith(".json") and REQID.fullmatch(name.removesuffix(".json")))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(error.strerror or str(error), path=directory) from error


def _unlink_all(names: list[str], dir_fd: int) -> None:
    """Remove the files, some at once where they are many. Raises: OSError."""
    if len(names) <= _FEW:
        for name in names:
            _unlink(name, dir_fd)
        return
    from concurrent.futures import ThreadPoolExecutor

    def unlink_each(share: list[str]) -> None:
        for name in share:
            _unlink(name, dir_fd)

    # each waits for the disk to take its blocks back: a file system that discards them does so one by one
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for _ in threads.map(unlink_each, [names[first::_AT_ONCE] for first in range(_AT_ONCE)]):
            pass


def _unlink(name: str, dir_fd: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)
