"""The record of one run, open for writing by its carrier alone.

Owns the steps by which it grows and is finished (`results` says what lies where). Output that is told
piece by piece is on disk and nowhere else; the finished record is composed from there piece by piece.
Must not know agents or callers.
"""

from __future__ import annotations

import os

from ctrl_exec.common import files
from ctrl_exec.common.clock import epoch_now
from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.json_text import encoder, loads
from ctrl_exec.common.names import check_reqid
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import replace
from ctrl_exec.services.progress import STREAMS, Received, with_output
from ctrl_exec.services.record_text import record_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from ctrl_exec.common.messages import HostResult
    from ctrl_exec.services.progress import Progress
    from ctrl_exec.services.records import CancelOutcome, RunRecord

FILE_MODE = 0o660
PIECE_CHARS = 1 << 16  # more than that of output in a result is told piece by piece before it
_SHORT_LINE_BYTES = 4096
_encoded = encoder(separators=(",", ":"))


class RunJournal:
    """The record of one run and its event log.

    It is inherited by fork; whoever does not go on with it calls `close`, which leaves the record
    to the other. What can't be written to a full disk is kept here, so that it costs no answer.
    """

    def __init__(
        self,
        directory: str,
        progress: Progress,
        fds: tuple[int, int],
        tell: Callable[[Sequence[str]], None],
    ) -> None:
        self._directory = directory
        self._progress = progress
        self._lock_fd, self._events_fd = fds
        self._tell = tell
        self._reqid = progress.record.reqid
        self._unwritten: dict[tuple[str, str], list[str]] = {}
        self._fault: StorageError | None = None  # why the first of it could not be written
        self._is_cancelled = False

    @property
    def reqid(self) -> str:
        """The id of the run."""
        return self._reqid

    @property
    def is_open(self) -> bool:
        """Whether this process is still the carrier."""
        return self._lock_fd >= 0

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody wishes the run cancelled; a question to the file system."""
        if not self._is_cancelled:
            self._is_cancelled = os.path.lexists(path_of(self._directory, self._reqid, ".cancel"))
        return self._is_cancelled

    @property
    def record(self) -> RunRecord:
        """The record as it stands, without output that is only on disk."""
        return self._progress.record

    @property
    def pending(self) -> tuple[str, ...]:
        """The hosts whose last word is still to come."""
        return self._progress.pending

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that make this process the carrier."""
        return (self._lock_fd, self._events_fd)

    @property
    def has_pieces(self) -> bool:
        """Whether output was told piece by piece."""
        return bool(self._progress.spans or self._unwritten)

    def result_of(self, host: str) -> HostResult:
        """What is known of one host, without output that is only on disk."""
        return self._progress.results[host]

    def received(self, host: str, stream: str) -> Received:
        """How much of a host's output is here."""
        return self._progress.received.get((host, stream)) or Received()

    def note(self, result: HostResult) -> bool:
        """Keep what was heard of a host; False for a host of no concern or one that was final.

        The output of a final result follows what `note_output` was given; where that was something, or
        it is large, it is kept on disk alone. Raises: StorageError if it can't be written; it is kept in
        memory all the same.
        """
        known = self._progress.results.get(result.host)
        if known is None or known.is_final:
            return False
        if result.is_final:
            result = self._tell_output(result)
        self._progress.add_result(result)
        if self._fault is not None and any((result.host, stream) in self._unwritten for stream in STREAMS):
            raise self._fault  # it would be a last word without its output; recovery asks the agent again
        self._progress.note_result(result, self._append({"result": result.as_json()}))
        return True

    def _tell_output(self, result: HostResult) -> HostResult:
        has_pieces = any((result.host, stream) in self._progress.received for stream in STREAMS)
        if not has_pieces and len(result.stdout) + len(result.stderr) <= PIECE_CHARS:
            return result
        for stream, text in (("stdout", result.stdout), ("stderr", result.stderr)):
            for start in range(0, len(text), PIECE_CHARS):
                with suppress(StorageError):  # it is kept here, and the result's own line will say so
                    self.note_output(result.host, stream, text[start : start + PIECE_CHARS])
        return replace(result, stdout="", stderr="")

    def note_output(self, host: str, stream: str, text: str, at: int | None = None) -> None:
        """Keep a piece of a host's output; `at` is how many raw bytes of that stream there are now.

        Raises: StorageError if it can't be written; it is kept in memory all the same.
        """
        self._progress.add_output(host, stream, text, at)
        unwritten = self._unwritten.get((host, stream))
        if unwritten is not None:  # after what is missing on disk nothing may stand there
            unwritten.append(text)
            return
        event: dict[str, Any] = {"out": host, "stream": stream, "text": text}
        if at is not None:
            event["at"] = at
        try:
            line = _line(event)
            place = self._write(line)
        except StorageError as error:
            self._unwritten[host, stream] = [text]
            self._fault = error
            raise
        self._progress.note_place(host, stream, place - len(line))

    def note_missed(self, host: str, at: int) -> int:
        """Keep that the agent does not know the run; gives since when it says so. Raises: StorageError."""
        missed = self._progress.missed
        since = min(at, missed.get(host, at))  # a clock may have been set back
        if since != missed.get(host):
            missed[host] = since
            self._append({"missed": host, "at": at})
        return since

    def note_batch(self, number: int, hosts: Sequence[str]) -> None:
        """Keep, durably, that a batch is begun: what no such line names was never started.

        Raises: StorageError; then it must not be begun.
        """
        self._append({"batch": number, "hosts": list(hosts)})
        try:
            os.fsync(self._events_fd)
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self._path(".events")) from error
        self._progress.begun = number

    def note_cancels(self, outcomes: Sequence[CancelOutcome]) -> None:
        """Keep what became of a cancel; in memory even if that can't be written. Raises: StorageError."""
        self._progress.note_cancels(outcomes)
        self._append({"cancel": {each.host: each.as_json() for each in outcomes}})

    def _append(self, event: dict[str, Any]) -> int:
        return self._write(_line(event))

    def _write(self, line: bytes) -> int:
        """Append the line; gives the place of its end."""
        try:
            end = os.fstat(self._events_fd).st_size
            try:
                files.write_all(self._events_fd, line)
            except OSError:
                os.ftruncate(self._events_fd, end)  # a part of a line would spoil the next one
                raise
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self._path(".events")) from error
        return end + len(line)

    def write(self, state: str) -> RunRecord:
        """Rewrite the record in a state that is not its end, and read all of it. Raises: StorageError."""
        self.mark(state)
        return self.read_back()

    def mark(self, state: str) -> None:
        """Rewrite the record in a state that is not its end, if it is in another. Raises: StorageError.

        What hosts have said stays where it is: in the log.
        """
        if state == self._progress.base.state:
            return
        self._progress.put(state=state)
        files.write_atomic(self._path(".json"), record_text(self._progress.base), FILE_MODE)
        self._tell((self._reqid,))

    def finish(self, state: str, now: int | None = None) -> RunRecord:
        """Write the complete record durably and let it go; gives it without output that is only on disk.

        Raises: StorageError; the record then stays unfinished and this process its carrier.
        """
        completed = epoch_now() if now is None else now
        record = self.record
        keeps_log = self.has_pieces or bool(record.batches or record.cancels)
        kept = {} if keeps_log else {"places": self._progress.places, "starts": self._progress.starts}
        places = {name: dict(each) for name, each in kept.items()}
        record = replace(record, state=state, complete=True, completed=completed, **places)
        self._save(record)
        with suppress(StorageError):  # for those who are reading the log
            self._append({"end": state, "counts": record.counts})
        self._progress.put(state=state, complete=True, completed=completed, **places)
        with suppress(StorageError):  # the nightly sweep makes a marker that could not be made now
            mark_done(self._directory, self._reqid, completed)
        with suppress(StorageError):
            remove_traces(self._directory, self._reqid, keeps_log=keeps_log)
        self._tell((self._reqid,))
        self.close()
        return record

    def _save(self, record: RunRecord) -> None:
        outputs = self._outputs if self.has_pieces else None
        files.write_atomic(self._path(".json"), record_text(record, outputs), FILE_MODE)

    def _outputs(self, result: HostResult) -> tuple[tuple[str, Iterator[str]], ...]:
        return tuple((stream, self._pieces(result.host, stream)) for stream in STREAMS)

    def _pieces(self, host: str, stream: str) -> Iterator[str]:
        """One stream of a host's output, as it was told. Raises: StorageError."""
        spans = self._progress.spans.get((host, stream))
        if spans:
            for start in spans:
                try:
                    yield loads(_line_at(self._events_fd, start))["text"]
                except (OSError, ValueError, KeyError) as error:
                    raise StorageError(str(error), path=self._path(".events")) from error
        yield from self._unwritten.get((host, stream), ())

    def read_back(self) -> RunRecord:
        """The record as it stands with all output. Raises: StorageError."""
        record = self.record
        if not self.has_pieces:
            return record
        told = {*self._progress.spans, *self._unwritten}
        return with_output(record, {key: "".join(self._pieces(*key)) for key in told})

    def full_result(self, host: str) -> HostResult:
        """What is known of one host with all its output. Raises: StorageError."""
        result = self.result_of(host)
        stdout, stderr = ("".join(self._pieces(host, stream)) for stream in STREAMS)
        return replace(result, stdout=stdout + result.stdout, stderr=stderr + result.stderr)

    def close(self) -> None:
        """Let the record go here; the lock ends when every process that inherited it has done so."""
        for fd in (self._lock_fd, self._events_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._events_fd = -1

    def _path(self, suffix: str) -> str:
        return path_of(self._directory, self._reqid, suffix)


def _line(event: dict[str, Any]) -> bytes:
    return _encoded(event).encode() + b"\n"


def _line_at(fd: int, start: int) -> bytes:
    """The line that begins there. Raises: OSError."""
    size = _SHORT_LINE_BYTES
    while True:
        chunk = os.pread(fd, size, start)
        end = chunk.find(b"\n")
        if end >= 0 or len(chunk) < size:
            return chunk[:end] if end >= 0 else chunk
        size *= 8


def remove_traces(directory: str, reqid: str, *, keeps_log: bool) -> None:
    """Remove what a complete record needs no more; the lock last, for by it what is left is found."""
    for suffix in (".cancel", ".lock") if keeps_log else (".events", ".cancel", ".lock"):
        files.remove(path_of(directory, reqid, suffix))


def mark_done(directory: str, reqid: str, completed: int) -> None:
    """Make the empty name that purge goes by. Raises: StorageError."""
    path = f"{directory}/done/{completed:08x}-{check_reqid(reqid)}"
    os.close(files.open_lock(path, FILE_MODE))


def path_of(directory: str, reqid: str, suffix: str, prefix: str = "") -> str:
    """The path of one of the files of a run."""
    return f"{directory}/{prefix}{check_reqid(reqid)}{suffix}"
