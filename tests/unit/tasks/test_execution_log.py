"""The log of an execution is bounded on disk and read as one text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctrl_exec.common.errors import StorageError
from ctrl_exec.tasks.execution.execution_log import ExecutionLog, log_parts, read_log, remove_log


def written(path: Path, chunks: list[bytes], limit_bytes: int = 4000) -> bytes:
    """What is read of a log of these chunks."""
    log = ExecutionLog(str(path), limit_bytes)
    for chunk in chunks:
        log.write(chunk)
    log.close()
    return b"".join(piece for _, piece in read_log(str(path)))


def test_a_short_log_is_whole(tmp_path: Path) -> None:
    """Byte for byte, private to the service."""
    path = tmp_path / "a.log"
    assert written(path, [b"one\n", b"two\n"]) == b"one\ntwo\n"
    assert os.stat(path).st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_of_a_long_log_head_and_tail_are_kept(tmp_path: Path) -> None:
    """What lies between is counted; the disk holds no more than the limit."""
    chunks = [f"line {number:06d}\n".encode() for number in range(5000)]
    text = written(tmp_path / "a.log", chunks)
    whole = b"".join(chunks)
    head, _, rest = text.partition(b"\n[")
    missing, _, tail = rest.partition(b" bytes left out]\n")
    assert whole.startswith(head)
    assert len(head) == 2000
    assert whole.endswith(tail)
    assert 1000 <= len(tail) <= 2000
    assert int(missing) == len(whole) - len(head) - len(tail)
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 4000 + 40


def test_it_can_be_read_on_from_any_offset(tmp_path: Path) -> None:
    """A follower that comes back gets what it has not seen."""
    path = str(tmp_path / "a.log")
    log = ExecutionLog(path, 4000)
    log.write(b"abc")
    assert list(read_log(path, 1)) == [(3, b"bc")]
    log.write(b"d" * 2500)
    (first_end, first), (second_end, second) = read_log(path, 3)
    assert (first_end, second_end) == (2000, 2503)
    assert first + second == b"d" * 2500
    log.close()


def test_nothing_printed_is_an_empty_log(tmp_path: Path) -> None:
    """And removing it is no error."""
    path = str(tmp_path / "a.log")
    assert log_parts(path) == ()
    assert list(read_log(path)) == []
    remove_log(path)


def test_removing_takes_the_segments_too(tmp_path: Path) -> None:
    """Nothing is left behind."""
    written(tmp_path / "a.log", [b"x" * 9000])
    remove_log(str(tmp_path / "a.log"))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error says where."""
    with pytest.raises(StorageError, match=r"no-such/a\.log"):
        ExecutionLog(str(tmp_path / "no-such" / "a.log"), 4000).write(b"x")
