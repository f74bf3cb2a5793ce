"""The spool: records by owner, their states, the purge, and the scripts' locks."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from ctrl_exec.common.errors import InvalidNameError, StorageError
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec_agent.cancelling import cancel_run
from ctrl_exec_agent.spool import Spool, is_alive, unlock

REQID = "00112233aabbccdd"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(str(tmp_path / "runs"))


def test_a_record_grows_from_running_to_done(spool: Spool):
    begun = spool.begin("main", REQID, "hello")
    running = spool.load("main", REQID, time.time())
    assert running is not None
    assert (running["status"], running["script"], running["owner"], "carrier" in running) == (
        "running", "hello", "main", False,
    )  # fmt: skip
    assert spool.is_running("main", REQID, time.time())
    spool.finish(begun, {"exit": 0, "stdout": "x", "stderr": ""})
    done = spool.load("main", REQID, time.time())
    assert done is not None
    assert (done["status"], done["exit"], "carrier" in done) == ("done", 0, False)
    assert not spool.is_running("main", REQID, time.time())
    assert spool.load("other", REQID, time.time()) is None


def test_a_record_whose_carrier_died_is_lost(spool: Spool):
    child = fork_child(lambda: spool.begin("main", REQID, "hello") and os.kill(os.getpid(), signal.SIGKILL))
    assert wait_status(child) == (-1, signal.SIGKILL)
    found = spool.load("main", REQID, time.time())
    assert found is not None
    assert found["status"] == "lost"


def test_the_carrier_is_known_by_more_than_its_number():
    identity = Path(f"/proc/{os.getpid()}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert is_alive(f"{os.getpid()}-{identity}-{boot}")
    assert not is_alive(f"{os.getpid()}-{int(identity) + 1}-{boot}")
    assert not is_alive(f"{os.getpid()}-{identity}-00000000")
    for nonsense in ("", "x", None, 5, f"{2**40}-1-{boot}", "²-1-x"):
        assert not is_alive(nonsense)


@pytest.mark.parametrize("owner", ["", "..", "a/b", ".locks", "a\0b", "ä"])
def test_an_owner_that_is_no_name_is_refused_where_the_path_is_built(spool: Spool, owner: str):
    with pytest.raises(InvalidNameError):
        spool.begin(owner, REQID, "hello")


@pytest.mark.parametrize("reqid", ["", "..", "../x", "0123", "0123456789ABCDEF", REQID + "\n"])
def test_a_request_id_that_is_none_is_refused_where_the_path_is_built(spool: Spool, reqid: str):
    for act in (lambda: spool.begin("main", reqid, "x"), lambda: spool.load("main", reqid, 0)):
        with pytest.raises(InvalidNameError):
            act()


def test_a_link_in_the_place_of_a_record_is_not_followed(spool: Spool, tmp_path: Path):
    spool.begin("main", REQID, "hello")
    (tmp_path / "secret").write_text('{"status": "done"}')
    path = tmp_path / f"runs/main/{REQID}.json"
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="symbolic link"):
        spool.load("main", REQID, time.time())


def test_the_purge_takes_what_is_old_and_not_what_runs(spool: Spool, tmp_path: Path):
    names = {"a" * 16: True, "b" * 16: False, "c" * 16: True}
    for reqid, is_done in names.items():
        begun = spool.begin("main", reqid, "hello")
        if is_done:
            spool.finish(begun, {"exit": 0})
    old = time.time() - 90_000
    for reqid in ("a" * 16, "b" * 16):
        os.utime(tmp_path / f"runs/main/{reqid}.json", (old, old))
    assert spool.purge(time.time()) == 1
    assert sorted(os.listdir(tmp_path / "runs/main")) == [f"{'b' * 16}.json", f"{'c' * 16}.json"]


def test_a_purge_is_due_once_an_hour(spool: Spool, tmp_path: Path):
    assert [spool.is_purge_due(time.time()) for _ in range(3)] == [True, False, False]
    assert spool.is_purge_due(time.time() + 3601)
    assert Spool("/proc/no/such").is_purge_due(time.time()) is False


def test_a_lock_is_held_once_and_by_every_copy_of_its_descriptor(spool: Spool):
    held = spool.lock("hello")
    assert held is not None
    assert spool.lock("hello") is None
    other = spool.lock("other")
    assert other is not None
    os.close(other)
    copy = os.dup(held)
    os.close(held)
    assert spool.lock("hello") is None
    os.close(copy)
    again = spool.lock("hello")
    assert again is not None
    kept = os.dup(again)
    unlock(again)
    free = spool.lock("hello")
    assert free is not None
    os.close(free)
    os.close(kept)
    with pytest.raises(InvalidNameError):
        spool.lock("../hello")


def test_output_that_is_not_in_the_record_is_read_from_beside_it(spool: Spool):
    begun = spool.begin("main", REQID, "hello", "base64")
    paths = [Path(each) for each in spool.output_paths("main", REQID)]
    paths[0].write_bytes(b"abc")
    running = spool.find("main", REQID, time.time())
    assert running is not None
    assert (running.status, running.can_cancel, is_alive(running.carrier)) == ("running", True, True)
    assert (running.outputs.stdout.read(0, 9), running.outputs.stderr.size()) == (b"abc", 0)
    spool.finish(begun, {"exit": 0, "stderr": "AAH/"}, ["stdout"])
    done = spool.find("main", REQID, time.time())
    assert done is not None
    assert (done.outputs.stdout.read(0, 9), done.outputs.stderr.read(0, 9)) == (b"abc", b"\0\1\xff")
    assert set(done.about()) == set(done.record) - {"stderr"}
    for found in (running, done):
        found.outputs.close()


def test_a_carrier_of_an_older_version_is_not_signalled(spool: Spool):
    spool.begin("main", REQID, "hello")
    path = Path(spool.directory) / "main" / f"{REQID}.json"
    document = json.loads(path.read_text())
    del document["heeds_cancel"]
    path.write_text(json.dumps(document))
    found = spool.find("main", REQID, time.time())
    assert found is not None
    assert (found.status, found.can_cancel) == ("running", False)
    assert cancel_run(spool, "main", REQID) is False
    assert not spool.is_cancel_asked("main", REQID)


def test_what_is_beside_a_record_goes_with_it_and_not_before(spool: Spool):
    begun = spool.begin("main", REQID, "hello")
    folder = Path(spool.directory) / "main"
    for path in spool.output_paths("main", REQID):
        Path(path).write_bytes(b"x")
    spool.note_script("main", REQID, os.getpid())
    spool.ask_cancel("main", REQID)
    assert is_alive(spool.script_of("main", REQID))
    assert spool.is_cancel_asked("main", REQID)
    (folder / "ffffffffffffffff.stdout").write_bytes(b"nobody's")
    day_ago = time.time() - 86_500
    for path in folder.iterdir():
        if path.name != f"{REQID}.json":
            os.utime(path, (day_ago, day_ago))
    spool.finish(begun, {"exit": 0}, ["stdout", "stderr"])
    assert spool.purge(time.time()) == 1
    assert len(list(folder.iterdir())) == 5
    os.utime(folder / f"{REQID}.json", (day_ago, day_ago))
    assert spool.purge(time.time()) == 1
    assert list(folder.iterdir()) == []


def test_a_request_id_that_is_used_for_another_script_begins_with_nothing(spool: Spool):
    begun = spool.begin("main", REQID, "hello")
    Path(spool.output_paths("main", REQID)[0]).write_bytes(b"old")
    spool.ask_cancel("main", REQID)
    spool.finish(begun, {"exit": 0}, ["stdout"])
    spool.begin("main", REQID, "other")
    found = spool.find("main", REQID, time.time())
    assert found is not None
    assert found.outputs.stdout.size() == 0
    assert not spool.is_cancel_asked("main", REQID)


def test_a_cancel_says_that_something_could_not_be_ended(spool: Spool):
    begun = spool.begin("main", REQID, "hello")
    spool.finish(begun, {"exit": 126, "stdout": "", "stderr": "", "left_behind": True})
    assert cancel_run(spool, "main", REQID) is False
    assert cancel_run(spool, "main", "ffffffffffffffff") is None
