"""The registry keeps records whole, names checked, keys revoked, and contacts out of trust."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ctrl_exec.common.errors import (
    ConflictError,
    InvalidInputError,
    InvalidNameError,
    StorageError,
    UnknownAgentError,
)
from ctrl_exec.common.process import fork_child
from ctrl_exec.common.value import replace
from ctrl_exec.services.registry import AgentRecord, Registry, check_tags

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_A = "aa" * 32
KEY_B = "bb" * 32


def make(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "agents"), str(tmp_path / "revoked.json"), str(tmp_path / "state"))


def full_record(name: str = "web-01") -> AgentRecord:
    return AgentRecord(
        hostname=name,
        ip="192.0.2.7",
        port=7444,
        lookup_by="ip",
        paired="2026-01-15T12:00:00Z",
        expiry="Jan 15 12:00:00 2027 GMT",
        reqid="0123456789abcdef",
        fingerprint=KEY_A,
        serial="7af3",
        tags=(("env", "prod"), ("role", "web")),
        dispatcher_serial="1abc",
        serial_status="current",
    )


def test_a_saved_record_reads_back_with_every_field(tmp_path: Path) -> None:
    """All twelve fields of a record survive the file."""
    registry = make(tmp_path)
    registry.save(full_record())
    assert registry.find("web-01") == full_record()
    assert registry.find("WEB-01") == full_record()
    document = json.loads((tmp_path / "agents/web-01.json").read_text())
    assert set(document) == {
        "hostname", "ip", "port", "lookup_by", "paired", "expiry", "reqid", "fingerprint", "serial",
        "tags", "dispatcher_serial", "serial_status",
    }  # fmt: skip
    assert document["tags"] == {"env": "prod", "role": "web"}


def test_records_and_their_directory_have_the_modes_of_the_contract(tmp_path: Path) -> None:
    """Records are 0640 in a directory of 0750, contacts 0660 in 2770, revocations 0640."""
    registry = make(tmp_path)
    registry.save(full_record())
    registry.note_contact("web-01", version="1.0")
    registry.revoke(full_record(), "lost")

    def mode(path: str) -> int:
        return stat.S_IMODE(os.stat(tmp_path / path).st_mode)

    assert mode("agents") == 0o750
    assert mode("agents/web-01.json") == 0o640
    assert mode("state") == 0o2770
    assert mode("state/web-01.json") == 0o660
    assert mode("revoked.json") == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_files_are_handed_to_their_owners(tmp_path: Path) -> None:
    """With owners set, records belong to (root, group) and contacts to the service user."""
    registry = Registry(
        str(tmp_path / "agents"),
        str(tmp_path / "revoked.json"),
        str(tmp_path / "state"),
        owner=(0, 65534),
        contact_owner=(65534, 65534),
    )
    registry.save(full_record())
    registry.note_contact("web-01")
    registry.revoke(full_record())
    owners = {
        path: (os.stat(tmp_path / path).st_uid, os.stat(tmp_path / path).st_gid)
        for path in ("agents", "agents/web-01.json", "revoked.json", "state", "state/web-01.json")
    }
    assert owners == {
        "agents": (0, 65534),
        "agents/web-01.json": (0, 65534),
        "revoked.json": (0, 65534),
        "state": (65534, 65534),
        "state/web-01.json": (65534, 65534),
    }


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", ".hidden", "-dash", "a\0b", "a\nb", "ä", "x" * 254]
)
def test_a_name_that_would_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    """No method builds a path from a name that does not match the pattern."""
    registry = make(tmp_path)
    for call in (registry.find, registry.remove, registry.note_contact, registry.contact):
        with pytest.raises(InvalidNameError):
            call(name)
    with pytest.raises(InvalidNameError):
        registry.save(full_record(name))
    assert not (tmp_path / "agents").exists() or os.listdir(tmp_path / "agents") == []


def test_unknown_agents_are_none_or_an_error_that_names_them(tmp_path: Path) -> None:
    """`find` says None, `get` raises with the name."""
    registry = make(tmp_path)
    assert registry.find("nobody") is None
    assert registry.names() == ()
    assert registry.records() == ()
    assert registry.remove("nobody") is False
    with pytest.raises(UnknownAgentError, match="nobody"):
        registry.get("nobody")


def test_damaged_and_half_written_records_do_not_stop_the_others(tmp_path: Path) -> None:
    """A list goes on past a damaged record; asking for that very one says what is wrong."""
    registry = make(tmp_path)
    registry.save(full_record("good"))
    (tmp_path / "agents/bad.json").write_text("{ half")
    (tmp_path / "agents/list.json").write_text("[]")
    (tmp_path / "agents/.tmp-1-2").write_text("")
    (tmp_path / "agents/Not A Name.json").write_text("{}")
    assert [record.hostname for record in registry.records()] == ["good"]
    assert registry.find("list") is None
    with pytest.raises(StorageError, match=r"bad\.json"):
        registry.find("bad")


def test_an_imported_record_takes_defaults_for_what_it_lacks(tmp_path: Path) -> None:
    """Ports as text, missing and odd fields of an older deployment are read."""
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/old.json").write_text(
        json.dumps({"hostname": "other", "ip": "192.0.2.1", "port": "7443", "fingerprint": "?", "tags": [1]})
    )
    found = make(tmp_path).get("old")
    assert found == AgentRecord(hostname="old", ip="192.0.2.1", port=7443)
    assert found.address == "old"
    assert replace(found, lookup_by="ip").address == "192.0.2.1"


def test_a_taken_name_is_not_replaced_unasked(tmp_path: Path) -> None:
    """`replacing=False` leaves the first record alone."""
    registry = make(tmp_path)
    registry.save(full_record(), replacing=False)
    with pytest.raises(ConflictError, match="web-01 is already registered"):
        registry.save(replace(full_record(), fingerprint=KEY_B), replacing=False)
    assert registry.get("web-01").fingerprint == KEY_A


def test_of_two_writers_that_race_for_a_name_one_wins(tmp_path: Path) -> None:
    """Eight processes save the same new name; exactly one succeeds and nothing is half-written."""
    registry = make(tmp_path)
    ready, go = os.pipe()

    def contend(number: int) -> None:
        os.close(go)
        os.read(ready, 1)
        try:
            registry.save(replace(full_record(), fingerprint=f"{number:064x}"), replacing=False)
        except ConflictError:
            os._exit(7)
        os._exit(0)

    children = [fork_child(lambda number=number: contend(number)) for number in range(8)]
    os.close(ready)
    os.close(go)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)
    assert codes == [0] + [7] * 7
    assert sorted(os.listdir(tmp_path / "agents")) == ["web-01.json"]


def test_concurrent_changes_of_one_record_are_all_kept(tmp_path: Path) -> None:
    """Amending different fields from several processes loses none of them."""
    registry = make(tmp_path)
    registry.save(full_record())
    changes = [{"port": 9999}, {"ip": "192.0.2.99"}, {"serial_status": "stale"}, {"reqid": "f" * 16}]

    def change(number: int) -> None:
        registry.amend("web-01", **changes[number])

    children = [fork_child(lambda number=number: change(number)) for number in range(len(changes))]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    merged = replace(full_record(), port=9999, ip="192.0.2.99", serial_status="stale", reqid="f" * 16)
    assert registry.get("web-01") == merged


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"lookup_by": "dns"}, "lookup_by"),
        ({"ip": ""}, "ip"),
        ({"ip": "not an address"}, "ip"),
        ({"fingerprint": "AB"}, "fingerprint"),
        ({"tags": (("bad key", "x"),)}, "tags"),
        ({"tags": (("k", "new\nline"),)}, "tags"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: dict[str, object], field: str) -> None:
    """A record that could not be right is refused with the field's name."""
    with pytest.raises(InvalidInputError) as caught:
        make(tmp_path).save(replace(full_record(), **change))
    assert caught.value.field == field


def test_tags_are_sorted_pairs() -> None:
    """Tags come out sorted, whatever order they were given in."""
    assert check_tags({"b": "2", "a": ""}) == (("a", ""), ("b", "2"))


def test_a_revoked_key_is_known_at_once_to_other_readers(tmp_path: Path) -> None:
    """A reader that has already looked sees a revocation made by another process."""
    reader, writer = make(tmp_path), make(tmp_path)
    assert not reader.is_revoked(KEY_A)
    writer.revoke(full_record(), "stolen", at="2026-01-01T00:00:00Z")
    assert reader.is_revoked(KEY_A)
    assert not reader.is_revoked(KEY_B)
    writer.revoke(replace(full_record("db"), fingerprint=KEY_B), "")
    assert reader.is_revoked(KEY_B)
    assert json.loads((tmp_path / "revoked.json").read_text())[KEY_A] == {
        "name": "web-01", "serial": "7af3", "at": "2026-01-01T00:00:00Z", "reason": "stolen",
    }  # fmt: skip
    assert [each.name for each in reader.revocations()] == ["db", "web-01"]
    again = writer.revoke(full_record(), "twice")
    assert again.reason == "stolen"


def test_a_damaged_revocation_file_trusts_nobody(tmp_path: Path) -> None:
    """When the file is there and says nothing readable, the question is an error, never a no."""
    registry = make(tmp_path)
    for content in ("{ half", "[]", '{"a": 1}'):
        (tmp_path / "revoked.json").write_text(content)
        with pytest.raises(StorageError):
            registry.is_revoked(KEY_A)


def test_a_record_without_a_key_cannot_be_revoked(tmp_path: Path) -> None:
    """Revocation is by key; without one the error says what to do."""
    with pytest.raises(InvalidInputError, match="ping it once"):
        make(tmp_path).revoke(replace(full_record(), fingerprint=""))


def test_an_imported_record_learns_its_key_once(tmp_path: Path) -> None:
    """The first key seen is bound; another one afterwards is not."""
    registry = make(tmp_path)
    registry.save(replace(full_record(), fingerprint="", serial=""))
    assert registry.learn_fingerprint("web-01", KEY_A, "7f")
    assert registry.get("web-01").serial == "7f"
    assert registry.learn_fingerprint("web-01", KEY_A)
    assert not registry.learn_fingerprint("web-01", KEY_B)
    assert registry.get("web-01").fingerprint == KEY_A


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A temporary directory that another user may enter, as those of pytest may not be."""
    with tempfile.TemporaryDirectory(prefix="ctrl-exec-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_process_that_may_not_write_the_registry_learns_nothing(open_directory: Path) -> None:
    """The service user can't bind a key: the answer is no, and the record stays as it was."""
    home = open_directory
    registry = Registry(
        str(home / "agents"), str(home / "revoked.json"), str(home / "state"), owner=(0, 65534)
    )
    registry.save(replace(full_record(), fingerprint=""))

    def become_and_learn() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os._exit(1 if registry.learn_fingerprint("web-01", KEY_A) else 42)

    assert os.waitstatus_to_exitcode(os.waitpid(fork_child(become_and_learn), 0)[1]) == 42
    assert registry.get("web-01").fingerprint == ""


def test_contacts_grow_and_go_with_the_agent(tmp_path: Path) -> None:
    """A later contact keeps what an earlier one told; removing the agent removes them."""
    registry = make(tmp_path)
    registry.save(full_record())
    assert registry.contact("web-01") == {}
    registry.note_contact("web-01", version="1.0", tags={"env": "prod"})
    registry.note_contact("web-01", version="1.1")
    found = registry.contact("web-01")
    assert (found["version"], found["tags"]) == ("1.1", {"env": "prod"})
    assert found["at"].endswith("Z")
    assert registry.remove("web-01") is True
    assert registry.find("web-01") is None
    assert registry.contact("web-01") == {}
