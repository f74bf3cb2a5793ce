"""Setting a dispatcher up: its CA, its identity, its directories, its API certificate.

Owns the first hour (core §3, §9 head) and the adoption of an existing deployment's files. What is
there already is kept: neither a CA nor an identity is ever overwritten. Must not know terminals.
"""

from __future__ import annotations

import os

from ctrl_exec.ca import identity as identities
from ctrl_exec.common import clock, files
from ctrl_exec.common.certificate import pem_to_der
from ctrl_exec.common.errors import CertificateError, InvalidInputError
from ctrl_exec.common.names import check_dispatcher_id
from ctrl_exec.common.value import value
from ctrl_exec.operations.ownership import Owners, owners_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.ca.authority import CertificateAuthority
    from ctrl_exec.ca.identity import Identity
    from ctrl_exec.config import Config

KEY_MODE = 0o600
CERTIFICATE_MODE = 0o644
ETC_MODE = 0o750
# root's own, where the service may make files but neither move nor remove what root made
STATE_MODE = 0o1770
SERVICE_FOLDERS = ("state", "pairing", "locks", "runs", "runs/done", "metrics", "workers")


@value
class CaSetup:
    """The CA after setup: whether it was made now, and the fingerprint agents can be given."""

    is_new: bool
    path: str
    fingerprint: str


@value
class IdentitySetup:
    """The dispatcher's identity after setup: made, adopted from an older deployment, or kept."""

    origin: str
    identity: Identity
    dispatcher_id: str


@value
class ApiSetup:
    """The API's certificate and key, and whether they were made now."""

    is_new: bool
    certificate_path: str
    key_path: str


def setup_ca(config: Config) -> CaSetup:
    """Make the CA, or check the one that is there.

    Raises: CertificateError when what is there is damaged or half; StorageError.
    """
    from ctrl_exec.ca.authority import create_authority, load_authority

    key_path, certificate_path = config.ca_key_path, config.ca_cert_path
    found = [os.path.lexists(path) for path in (key_path, certificate_path)]
    if any(found) and not all(found):
        missing, there = (key_path, certificate_path) if found[1] else (certificate_path, key_path)
        raise CertificateError(f"{there} exists and {missing} does not; move it away or bring the other back")
    if not any(found):
        owners = owners_of(config)
        for path in (key_path, certificate_path):
            files.make_dirs(os.path.dirname(path), ETC_MODE, owner=owners.trusted)
        key_pem, certificate_pem = create_authority(clock.utc_now())
        files.write_atomic(key_path, key_pem, KEY_MODE, exclusive=True)
        files.write_atomic(certificate_path, certificate_pem, CERTIFICATE_MODE, exclusive=True)
    authority = load_authority(key_path, certificate_path)
    return CaSetup(not any(found), certificate_path, authority.fingerprint)


def setup_identity(config: Config) -> IdentitySetup:
    """Make the dispatcher's key and certificate, or take over those of an existing deployment.

    Agents of that deployment trust the old certificate's serial, so it stays in use as it is.

    Raises: CertificateError without a CA, or when what is there does not fit it; StorageError.
    """
    owners = owners_of(config)
    prepare_state(config, owners)
    authority = _authority(config)
    current = os.path.join(config.identity_dir, identities.CURRENT)
    if os.path.lexists(current):
        origin = "kept"
    elif _is_configured_elsewhere(config):
        return _checked(config, authority, "kept", config.cert_path)
    else:
        origin = _install_identity(config, authority, owners)
    identities.link_identity(config.identity_dir, config.cert_path, config.key_path)
    return _checked(config, authority, origin, current)


def _install_identity(config: Config, authority: CertificateAuthority, owners: Owners) -> str:
    from ctrl_exec.ca.authority import new_key_pem, spki_of_key

    adopted = identities.read_pair(config.cert_path, config.key_path) or identities.find_adoptable(
        (config.ca_dir or config.etc_dir, config.etc_dir)
    )
    if adopted is None:
        dispatcher_id = check_dispatcher_id(config.dispatcher_id)
        key_pem = new_key_pem()
        issued = authority.issue_dispatcher(spki_of_key(key_pem), dispatcher_id, now=clock.utc_now())
        adopted, origin = (key_pem, issued.pem), "new"
    else:
        authority.check_issued(pem_to_der(adopted[1]))
        origin = "adopted"
    serial = identities.store_identity(
        config.identity_dir, *adopted, owner=owners.service, directory_owner=owners.trusted
    )
    identities.activate(config.identity_dir, serial)
    return origin


def _is_configured_elsewhere(config: Config) -> bool:
    """Whether `cert` and `key` name an existing pair outside our own layout, to be used as it is."""
    defaults = (
        os.path.join(config.etc_dir, "dispatcher.crt"),
        os.path.join(config.etc_dir, "dispatcher.key"),
    )
    paths = (config.cert_path, config.key_path)
    return paths != defaults and all(os.path.isfile(path) for path in paths)


def _checked(config: Config, authority: CertificateAuthority, origin: str, path: str) -> IdentitySetup:
    found = identities.load_identity(path)
    authority.check_issued(found.der)
    return IdentitySetup(origin, found, found.dispatcher_id(config.dispatcher_id))


def prepare_state(config: Config, owners: Owners) -> None:
    """Make the directories of core §3 that are missing. Raises: StorageError."""
    files.make_dirs(config.state_dir, STATE_MODE if owners.trusted else 0o750, owner=owners.trusted)
    files.make_dirs(config.agents_dir, 0o750, owner=owners.trusted)
    for folder in SERVICE_FOLDERS:
        files.make_dirs(os.path.join(config.state_dir, folder), 0o2770, owner=owners.service)


def setup_api(config: Config) -> ApiSetup:
    """Issue `api.crt` and `api.key` for the names and addresses of this host, unless they exist.

    Raises: CertificateError; StorageError.
    """
    from ctrl_exec.ca.authority import DISPATCHER_DAYS, new_key_pem, spki_of_key

    certificate_path = config.api_cert or os.path.join(config.etc_dir, "api.crt")
    key_path = config.api_key or os.path.join(config.etc_dir, "api.key")
    if os.path.exists(certificate_path) and os.path.exists(key_path):
        return ApiSetup(False, certificate_path, key_path)
    key_pem = new_key_pem()
    issued = _authority(config).issue_server(
        spki_of_key(key_pem), *_own_names(config), days=DISPATCHER_DAYS, now=clock.utc_now()
    )
    # the service user's alone: people are made members of its group to use the API's socket
    files.write_atomic(key_path, key_pem, KEY_MODE, owner=owners_of(config).service)
    files.write_atomic(certificate_path, issued.pem.encode("ascii"), CERTIFICATE_MODE)
    return ApiSetup(True, certificate_path, key_path)


def _own_names(config: Config) -> tuple[list[str], list[str]]:
    """(names, addresses) that clients may reach the API by."""
    from ctrl_exec.services.registry import check_address

    names, addresses = [os.uname().nodename.lower(), "localhost"], ["127.0.0.1", "::1"]
    for each in (*config.api_names, *config.api_bind):
        host = each.strip("[]").lower()
        try:
            addresses.append(check_address(host))
        except InvalidInputError:
            names.append(host.partition(":")[0])
    wildcards = ("0.0.0.0", "::")  # noqa: S104 - listened on, never a name to connect to
    return list(dict.fromkeys(names)), [each for each in dict.fromkeys(addresses) if each not in wildcards]


def _authority(config: Config) -> CertificateAuthority:
    from ctrl_exec.ca.authority import load_authority

    return load_authority(config.ca_key_path, config.ca_cert_path)
