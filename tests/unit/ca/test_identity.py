"""The dispatcher's identity: one file, one rename, links that always lead to a whole pair."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import stat
from typing import TYPE_CHECKING

import pytest

from ctrl_exec.ca import identity
from ctrl_exec.ca.authority import create_authority, load_authority, new_key_pem, spki_of_key
from ctrl_exec.common.errors import CertificateError, StorageError
from ctrl_exec.common.tls import server_context

if TYPE_CHECKING:
    from pathlib import Path

    from ctrl_exec.ca.authority import CertificateAuthority
    from tests.support.legacy import LegacyDeployment


def make_authority(directory: Path) -> CertificateAuthority:
    key, certificate = create_authority(dt.datetime.now(dt.UTC))
    (directory / "ca.key").write_bytes(key)
    (directory / "ca.crt").write_bytes(certificate)
    return load_authority(str(directory / "ca.key"), str(directory / "ca.crt"))


def store(directory: Path, authority: CertificateAuthority, dispatcher_id: str = "main") -> str:
    key = new_key_pem()
    issued = authority.issue_dispatcher(spki_of_key(key), dispatcher_id, now=dt.datetime.now(dt.UTC))
    return identity.store_identity(str(directory / "identity"), key, issued.pem)


def test_key_and_certificate_are_one_file_that_the_links_lead_to(tmp_path: Path) -> None:
    """`dispatcher.crt` and `.key` load as a pair; the file is 0600, its directory 0750."""
    authority = make_authority(tmp_path)
    serial = store(tmp_path, authority)
    identity.activate(str(tmp_path / "identity"), serial)
    crt, key = str(tmp_path / "dispatcher.crt"), str(tmp_path / "dispatcher.key")
    identity.link_identity(str(tmp_path / "identity"), crt, key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(crt, key)
    assert stat.S_IMODE(os.stat(tmp_path / f"identity/{serial}.pem").st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "identity").st_mode) == 0o750
    assert os.readlink(tmp_path / "identity/current") == f"{serial}.pem"
    assert os.readlink(crt) == "identity/current"
    assert identity.is_linked(str(tmp_path / "identity"), crt)
    found = identity.load_identity(crt)
    assert (found.serial, found.dispatcher_id("other")) == (serial, "main")


def test_a_swap_is_one_rename_and_no_reader_sees_half(tmp_path: Path) -> None:
    """A reader that loads pairs while identities are swapped never meets a mismatch or a gap."""
    authority = make_authority(tmp_path)
    folder = str(tmp_path / "identity")
    serials = [store(tmp_path, authority) for _ in range(2)]
    identity.activate(folder, serials[0])
    pid = os.fork()
    if pid == 0:
        for turn in range(1000):
            identity.activate(folder, serials[turn % 2])
        os._exit(0)
    loads = 0
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        server_context(f"{folder}/current", f"{folder}/current")
        loads += 1
    assert loads > 5
    assert sorted(os.listdir(folder)) == sorted([f"{each}.pem" for each in serials] + ["current"])


def test_a_pair_of_links_follows_a_swap_together(tmp_path: Path) -> None:
    """Readers of `dispatcher.crt` and `.key` get the new pair after each swap."""
    authority = make_authority(tmp_path)
    folder = str(tmp_path / "identity")
    crt, key = str(tmp_path / "dispatcher.crt"), str(tmp_path / "dispatcher.key")
    for _ in range(3):
        serial = store(tmp_path, authority)
        identity.activate(folder, serial)
        identity.link_identity(folder, crt, key)
        server_context(crt, key)
        assert identity.load_identity(crt).serial == serial


def test_an_unknown_identity_is_not_activated(tmp_path: Path) -> None:
    """`current` stays what it was when the new identity is missing or its name is none."""
    authority = make_authority(tmp_path)
    serial = store(tmp_path, authority)
    identity.activate(str(tmp_path / "identity"), serial)
    with pytest.raises(StorageError, match="no such identity"):
        identity.activate(str(tmp_path / "identity"), "abcdef")
    with pytest.raises(CertificateError, match="no serial"):
        identity.activate(str(tmp_path / "identity"), "../../etc/passwd")
    assert os.readlink(tmp_path / "identity/current") == f"{serial}.pem"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_the_identity_is_handed_to_the_service_user(tmp_path: Path) -> None:
    """Written by root, the file belongs to the service user and the directory to root and its group."""
    authority = make_authority(tmp_path)
    key = new_key_pem()
    issued = authority.issue_dispatcher(spki_of_key(key), "main", now=dt.datetime.now(dt.UTC))
    serial = identity.store_identity(
        str(tmp_path / "identity"), key, issued.pem, owner=(65534, 65534), directory_owner=(0, 65534)
    )
    about = os.stat(tmp_path / f"identity/{serial}.pem")
    assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (65534, 65534, 0o600)
    folder = os.stat(tmp_path / "identity")
    assert (folder.st_uid, folder.st_gid) == (0, 65534)


@pytest.mark.parametrize("stem", ["ctrl-exec", "dispatcher"])
def test_an_older_deployments_pair_is_found_under_both_names(
    legacy: LegacyDeployment, tmp_path: Path, stem: str
) -> None:
    """`ctrl-exec.crt/.key` and `dispatcher.crt/.key` beside the CA are taken, RSA and v1 as they are."""
    (tmp_path / f"{stem}.crt").write_bytes(legacy.dispatcher_crt.read_bytes())
    (tmp_path / f"{stem}.key").write_bytes(legacy.dispatcher_key.read_bytes())
    found = identity.find_adoptable((str(tmp_path),))
    assert found is not None
    serial = identity.store_identity(str(tmp_path / "identity"), *found)
    assert serial == "4"
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "identity/4.pem")
    assert identity.load_identity(str(tmp_path / "identity/4.pem")).dispatcher_id("named") == "named"


def test_nothing_or_damaged_files_are_not_adopted(tmp_path: Path) -> None:
    """Half a pair is none; junk is an error that names the file."""
    assert identity.find_adoptable((str(tmp_path),)) is None
    (tmp_path / "dispatcher.crt").write_text("junk")
    assert identity.find_adoptable((str(tmp_path),)) is None
    (tmp_path / "dispatcher.key").write_bytes(new_key_pem())
    with pytest.raises(CertificateError, match=r"dispatcher\.crt"):
        identity.find_adoptable((str(tmp_path),))
    (tmp_path / "dispatcher.key").write_text("junk")
    with pytest.raises(CertificateError, match=r"dispatcher\.key"):
        identity.find_adoptable((str(tmp_path),))


def test_a_missing_identity_says_which_command_makes_it(tmp_path: Path) -> None:
    """The error names the file and the command."""
    with pytest.raises(CertificateError, match=r"none\.crt: does not exist; `ctrl-exec setup-ctrl-exec`"):
        identity.load_identity(str(tmp_path / "none.crt"))
