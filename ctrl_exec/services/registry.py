"""The registry: which agents are paired, which keys are revoked, when each agent was last heard.

Owns `agents/<name>.json`, `revoked.json` and `state/<name>.json`. A record binds a name to the
fingerprint of the agent's key; only signing commands write records and revocations, whoever talks
to an agent notes contacts, and nothing in a contact decides trust. Must not know about
certificates, the network, or who asks.
"""

from __future__ import annotations

import os

from ctrl_exec.common import clock, files
from ctrl_exec.common.errors import ConflictError, InvalidInputError, StorageError, UnknownAgentError
from ctrl_exec.common.names import AGENT_NAME, FINGERPRINT, TAG_KEY, TAG_VALUE, check_agent_name
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import fields, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

RECORD_MODE = 0o640
CONTACT_MODE = 0o660
DEFAULT_PORT = 7443
LOOKUPS = ("hostname", "ip")
# `current`: the agent trusts the dispatcher's present serial; `pending`: it was not yet told;
# `stale`: it was told and did not confirm; `unknown`: an imported record
SERIAL_STATUSES = ("current", "pending", "stale", "unknown")
_REVOKED_LIMIT_BYTES = 64 << 20
_LOCK = ".lock"
_TEXTS = (
    "ip",
    "lookup_by",
    "paired",
    "expiry",
    "reqid",
    "fingerprint",
    "serial",
    "dispatcher_serial",
    "serial_status",
)


@value
class AgentRecord:
    """One paired agent.

    `paired` is ISO 8601 with Z, `expiry` as openssl prints times, `fingerprint` the SHA-256 of the
    key's SPKI (empty for an imported record that has not been contacted), serials are lower-case hex.
    """

    hostname: str
    ip: str = ""
    port: int = DEFAULT_PORT
    lookup_by: str = "hostname"
    paired: str = ""
    expiry: str = ""
    reqid: str = ""
    fingerprint: str = ""
    serial: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    dispatcher_serial: str = ""
    serial_status: str = "current"

    @property
    def address(self) -> str:
        """What is dialled: the recorded address or the name, as `lookup_by` says."""
        return self.ip if self.lookup_by == "ip" and self.ip else self.hostname


@value
class Revocation:
    """One revoked key."""

    fingerprint: str
    name: str
    serial: str
    at: str
    reason: str


class Registry:
    """The records of one dispatcher.

    `owner` is (uid, gid) for records and revocations, `contact_owner` the same for contacts; None
    leaves files to whoever writes them, as private instances do.
    """

    def __init__(
        self,
        agents_dir: str,
        revoked_path: str,
        contacts_dir: str,
        *,
        owner: tuple[int, int] | None = None,
        contact_owner: tuple[int, int] | None = None,
    ) -> None:
        self.agents_dir = agents_dir
        self.revoked_path = revoked_path
        self.contacts_dir = contacts_dir
        self._owner = owner
        self._contact_owner = contact_owner
        self._revoked_seen: tuple[int, int, int] | None = None
        self._revoked: dict[str, Revocation] = {}

    # Records

    def names(self) -> tuple[str, ...]:
        """The names of all registered agents, sorted. Raises: StorageError."""
        try:
            found = os.listdir(self.agents_dir)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self.agents_dir) from error
        stems = (name.removesuffix(".json") for name in found if name.endswith(".json"))
        return tuple(sorted(stem for stem in stems if AGENT_NAME.fullmatch(stem)))

    def find(self, name: str) -> AgentRecord | None:
        """The agent's record, None if it is not registered or its record is no record.

        Raises: InvalidNameError; StorageError if a record is there but can't be read.
        """
        folded = check_agent_name(name)
        document = files.read_json(f"{self.agents_dir}/{folded}.json")
        return _decode_record(folded, document)

    def get(self, name: str) -> AgentRecord:
        """The agent's record. Raises: UnknownAgentError, and as `find`."""
        found = self.find(name)
        if found is None:
            raise UnknownAgentError((name,))
        return found

    def records(self) -> tuple[AgentRecord, ...]:
        """All readable records, sorted by name. A record that is damaged or just vanished is left out."""
        found = []
        for name in self.names():
            with suppress(StorageError):
                record = self.find(name)
                if record is not None:
                    found.append(record)
        return tuple(found)

    def save(self, record: AgentRecord, *, replacing: bool = True) -> None:
        """Write the record.

        Raises: ConflictError without `replacing` when the name is taken, also when two writers race
        for it; InvalidInputError for a bad field; StorageError.
        """
        checked = check_record(record)
        path = os.path.join(self.agents_dir, f"{checked.hostname}.json")
        files.make_dirs(self.agents_dir, 0o750, owner=self._owner)
        try:
            files.write_json(
                path, _encode_record(checked), RECORD_MODE, owner=self._owner, exclusive=not replacing
            )
        except FileExistsError as error:
            raise ConflictError(f"{checked.hostname} is already registered") from error

    def amend(self, name: str, **changes: Any) -> AgentRecord:
        """Change fields of a record in place and return it; concurrent changes of others are kept.

        Raises: UnknownAgentError; InvalidInputError; StorageError.
        """
        with self._held():
            changed = replace(self.get(name), **changes)
            self.save(changed)
        return changed

    def remove(self, name: str) -> bool:
        """Forget the agent and its contacts; False if it was not registered. Raises: StorageError."""
        folded = check_agent_name(name)
        with suppress(OSError):
            # others write there: not through a link in the place of the directory
            contacts = files.open_dir(self.contacts_dir)
            try:
                os.unlink(f"{folded}.json", dir_fd=contacts)
            finally:
                os.close(contacts)
        return files.remove(os.path.join(self.agents_dir, f"{folded}.json"))

    def learn_fingerprint(self, name: str, fingerprint: str, serial: str = "") -> bool:
        """Bind an imported record to the key it showed on first contact.

        True when it is bound to that key now. False when it is bound to another one, or when this
        process may not write the registry: then the next signing command that meets it does.
        """
        try:
            with self._held():
                record = self.get(name)
                if record.fingerprint:
                    return record.fingerprint == fingerprint
                self.save(replace(record, fingerprint=fingerprint, serial=serial or record.serial))
        except StorageError:
            return False
        return True

    def _held(self) -> files.held_lock:
        """Hold the writers' lock: reading, changing and writing a file is one step to other writers."""
        files.make_dirs(self.agents_dir, 0o750, owner=self._owner)
        return files.held_lock(os.path.join(self.agents_dir, _LOCK), 0o600)

    # Revocation

    def revocations(self) -> tuple[Revocation, ...]:
        """All revoked keys, sorted by name. Raises: StorageError."""
        return tuple(sorted(self._load_revoked().values(), key=lambda each: (each.name, each.at)))

    def is_revoked(self, fingerprint: str) -> bool:
        """Whether the key was revoked; the file is read again whenever it changed.

        Raises: StorageError when the file is there and unreadable: who can't tell must not trust.
        """
        return fingerprint in self._load_revoked()

    def revoke(self, record: AgentRecord, reason: str = "", *, at: str = "") -> Revocation:
        """Enter the record's key among the revoked ones.

        Raises: InvalidInputError if the record has no fingerprint; StorageError.
        """
        if not FINGERPRINT.fullmatch(record.fingerprint):
            raise InvalidInputError(
                f"{record.hostname} has no recorded key to revoke; ping it once, or unpair it", field="name"
            )
        entry = Revocation(
            record.fingerprint, record.hostname, record.serial, at or clock.iso_z(clock.utc_now()), reason
        )
        with self._held():
            known = dict(self._load_revoked())
            known.setdefault(entry.fingerprint, entry)
            document = {
                each.fingerprint: {
                    "name": each.name,
                    "serial": each.serial,
                    "at": each.at,
                    "reason": each.reason,
                }
                for each in known.values()
            }
            files.write_json(self.revoked_path, document, RECORD_MODE, owner=self._owner)
        return known[entry.fingerprint]

    def _load_revoked(self) -> Mapping[str, Revocation]:
        try:
            about = os.stat(self.revoked_path)
        except FileNotFoundError:
            self._revoked_seen, self._revoked = None, {}
            return self._revoked
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self.revoked_path) from error
        seen = (about.st_ino, about.st_mtime_ns, about.st_size)
        if seen != self._revoked_seen:
            document = files.read_json(self.revoked_path, _REVOKED_LIMIT_BYTES)
            self._revoked = _decode_revoked(document, self.revoked_path)
            self._revoked_seen = seen
        return self._revoked

    # Contacts

    def note_contact(self, name: str, **live: Any) -> None:
        """Note that the agent answered just now, and what it said of itself (version, tags, expiry).

        What was noted earlier and is not given now stays. Raises: StorageError.
        """
        folded = check_agent_name(name)
        known = self.contact(folded) | live | {"at": clock.iso_z(clock.utc_now())}
        files.make_dirs(self.contacts_dir, 0o2770, owner=self._contact_owner)
        path = os.path.join(self.contacts_dir, f"{folded}.json")
        # a thousand agents answer in a second: their notes may be lost in a crash
        files.write_json(path, known, CONTACT_MODE, owner=self._contact_owner, durable=False)

    def contact(self, name: str) -> dict[str, Any]:
        """The last contact: `{"at": …, "version": …, "tags": {…}}`; empty if none or unreadable."""
        folded = check_agent_name(name)
        with suppress(StorageError):
            document = files.read_json(os.path.join(self.contacts_dir, f"{folded}.json"))
            if isinstance(document, dict):
                return document
        return {}


def check_record(record: AgentRecord) -> AgentRecord:
    """The record with its name folded. Raises: InvalidInputError naming the field."""
    name = check_agent_name(record.hostname)
    if not 1 <= record.port <= 65535:
        raise InvalidInputError(f"port {record.port}: expected 1 to 65535", field="port")
    if record.lookup_by not in LOOKUPS:
        raise InvalidInputError(f"lookup_by {record.lookup_by!r}: expected hostname or ip", field="lookup_by")
    if record.lookup_by == "ip" and not record.ip:
        raise InvalidInputError("lookup_by ip needs an ip", field="ip")
    if record.ip:
        check_address(record.ip)
    if record.fingerprint and not FINGERPRINT.fullmatch(record.fingerprint):
        raise InvalidInputError("fingerprint: expected 64 lower-case hex digits", field="fingerprint")
    return replace(record, hostname=name, tags=check_tags(dict(record.tags)))


def check_address(ip: object) -> str:
    """The address as text. Raises: InvalidInputError unless it is an IPv4 or IPv6 address."""
    import ipaddress

    try:
        if not isinstance(ip, str):
            raise ValueError(ip)
        return str(ipaddress.ip_address(ip))
    except ValueError as error:
        raise InvalidInputError(f"{str(ip)[:80]!r} is not an IP address", field="ip") from error


def check_tags(tags: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """The tags as sorted pairs. Raises: InvalidInputError naming the one that is none."""
    for key, text in tags.items():
        if not TAG_KEY.fullmatch(key) or not isinstance(text, str) or not TAG_VALUE.fullmatch(text):
            raise InvalidInputError(
                f"tag {key[:64]!r}={str(text)[:128]!r}: expected letters, digits, '.', '_' and '-' "
                "(in values also ':', '/', '@' and '+')",
                field="tags",
            )
    return tuple(sorted((key, str(text)) for key, text in tags.items()))


def _encode_record(record: AgentRecord) -> dict[str, Any]:
    plain = {each.name: getattr(record, each.name) for each in fields(AgentRecord)}
    return plain | {"tags": dict(record.tags)}


def _decode_record(name: str, document: Any) -> AgentRecord | None:
    """The record of a file; what is missing or odd in an old one takes its default."""
    if not isinstance(document, dict):
        return None
    given = document.get
    texts = {key: text for key in _TEXTS if isinstance(text := given(key), str)}
    if not FINGERPRINT.fullmatch(texts.get("fingerprint", "")):
        texts.pop("fingerprint", None)
    if texts.get("lookup_by") not in LOOKUPS:
        texts.pop("lookup_by", None)
    return AgentRecord(name, port=_port(document), tags=_tags(given("tags")), **texts)


def _port(document: Mapping[str, Any]) -> int:
    try:
        port = int(document.get("port", DEFAULT_PORT))
    except (TypeError, ValueError, OverflowError):  # the last one is for Infinity
        return DEFAULT_PORT
    return port if 1 <= port <= 65535 else DEFAULT_PORT


def _tags(found: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(found, dict):
        return ()
    return tuple(sorted((key, text) for key, text in found.items() if isinstance(text, str)))


def _decode_revoked(document: Any, path: str) -> dict[str, Revocation]:
    if document is None:  # removed between stat and open
        return {}
    if not isinstance(document, dict) or not all(isinstance(each, dict) for each in document.values()):
        raise StorageError("expected an object of revoked keys", path=path)
    words = ("name", "serial", "at", "reason")
    return {
        fingerprint.lower(): Revocation(fingerprint.lower(), *(str(entry.get(word, "")) for word in words))
        for fingerprint, entry in document.items()
    }
