"""What is secret at rest: AES-256-GCM under a key of its own file, bound to the place it stands in.

Owns the key file (`<etc_dir>/secrets.key`, 0600, a line `id key` for each key, the newest last) and the
form of what is sealed: version, key id, nonce, ciphertext. Knows no table. Source: NIST SP 800-38D.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat

from ctrl_exec.common.errors import ServiceError, StorageError
from ctrl_exec.common.files import read_bounded, write_atomic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VERSION = b"\x01"
_ID_BYTES = 4
_KEY_BYTES = 32
# 96 random bits: GCM's own size, and far fewer values than a random one could repeat in
_NONCE_BYTES = 12
_MODE = 0o600
_FILE_LIMIT_BYTES = 65536

Place = tuple[str, str, str]
"""Table, id and name of what is sealed: a value copied to another place is not opened there."""
PARAMETERS: Place = ("executions", "", "parameterMap")


class Sealer:
    """Seals and opens with the keys of a file, which is read anew at each seal: the key may have changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._keys: dict[bytes, bytes] = {}

    def seal(self, place: Place, content: bytes) -> bytes:
        """The content, encrypted under the newest key.

        Raises: ServiceError where there is no key and none can be made; StorageError.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key_id, key = self._newest()
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + key_id + nonce + AESGCM(key).encrypt(nonce, content, _associated(place))

    def unseal(self, place: Place, sealed: bytes) -> bytes:
        """What was sealed for that place.

        Raises: StorageError if the key is not there, or it was changed, or belongs elsewhere.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key = self._keys.get(key_id_of(sealed)) or self._load().get(key_id_of(sealed))
        if key is None or sealed[:1] != _VERSION:
            raise StorageError("the key of a secret is not here", path=self.path)
        start = 1 + _ID_BYTES
        nonce, rest = sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES :]
        try:
            return AESGCM(key).decrypt(nonce, rest, _associated(place))
        except (InvalidTag, ValueError) as error:
            raise StorageError("a secret does not open: it was changed, or belongs elsewhere") from error

    def _newest(self) -> tuple[bytes, bytes]:
        keys = self._load()
        if not keys:
            make_key(self.path)
            keys = self._load()
        return list(keys.items())[-1]

    def _load(self) -> dict[bytes, bytes]:
        self._keys = _read(self.path)
        return self._keys


def key_id_of(sealed: bytes) -> bytes:
    """The id of the key that something was sealed with."""
    return sealed[1 : 1 + _ID_BYTES]


def key_ids(path: str) -> tuple[bytes, ...]:
    """The ids of the file's keys, the newest last. Raises: StorageError."""
    return tuple(_read(path))


def make_key(path: str, *, owner: tuple[int, int] | None = None) -> bytes:
    """Have there be a first key; gives the newest one's id.

    Raises: ServiceError if it can't be written here.
    """
    try:
        write_atomic(path, _line(), _MODE, owner=owner, exclusive=True)
    except FileExistsError:
        pass
    except StorageError as error:
        raise ServiceError(
            "there is no key for secrets, and it can't be made here: run `ctrl-exec secrets init`"
        ) from error
    return key_ids(path)[-1]


def add_key(path: str, *, owner: tuple[int, int] | None = None) -> bytes:
    """Add a key, the newest from now on; gives its id. Raises: StorageError."""
    known = b"" if not os.path.exists(path) else read_bounded(path, _FILE_LIMIT_BYTES)
    write_atomic(path, known + _line(), _MODE, owner=owner)
    return key_ids(path)[-1]


def drop_old_keys(path: str, *, owner: tuple[int, int] | None = None) -> None:
    """Leave the newest key alone. Raises: StorageError."""
    last = read_bounded(path, _FILE_LIMIT_BYTES).splitlines()[-1]
    write_atomic(path, last + b"\n", _MODE, owner=owner)


def _line() -> bytes:
    key = base64.b64encode(os.urandom(_KEY_BYTES))
    return os.urandom(_ID_BYTES).hex().encode("ascii") + b" " + key + b"\n"


def _read(path: str) -> dict[bytes, bytes]:
    try:
        content = read_bounded(path, _FILE_LIMIT_BYTES)
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        return {}
    if mode & 0o077:
        raise StorageError(f"mode {mode:o}: a key that others may read is none (chmod 600)", path=path)
    found = {}
    try:
        for line in content.splitlines():
            key_id, _, key = line.partition(b" ")
            found[bytes.fromhex(key_id.decode("ascii"))] = base64.b64decode(key, validate=True)
    except (ValueError, binascii.Error) as error:
        raise StorageError("holds a line that is no key", path=path) from error
    if any(len(key_id) != _ID_BYTES or len(key) != _KEY_BYTES for key_id, key in found.items()):
        raise StorageError("holds a line that is no key", path=path)
    return found


def _associated(place: Place) -> bytes:
    return "\x00".join(place).encode("utf-8")


def seal_parameters(sealer: Sealer, contents: dict[str, Any]) -> bytes:
    """The SECRET parameters of an execution, as its row holds them until it ends."""
    return sealer.seal(PARAMETERS, json.dumps(contents).encode("utf-8"))


def unseal_parameters(sealer: Sealer, sealed: bytes | None) -> dict[str, str]:
    """The SECRET parameters of an execution by name. Raises: StorageError."""
    found: dict[str, str] = {} if sealed is None else json.loads(sealer.unseal(PARAMETERS, sealed))
    return found
