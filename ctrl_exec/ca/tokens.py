"""Pairing tokens: leave to pair one name, once, until a time.

Owns `tokens/<SHA-256>.json` below the signer's directory, which only root reads. Of a token nothing
but its SHA-256 is stored. The listener never hands a secret on: it proves to the signer that the
agent showed it, bound to that agent's CSR. Consuming is one rename, before anything is signed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re

from ctrl_exec.common import clock, files
from ctrl_exec.common.errors import InvalidInputError, StorageError
from ctrl_exec.common.names import check_agent_name
from ctrl_exec.common.pairing_code import format_token
from ctrl_exec.common.value import value

TOKEN_MODE = 0o600
MOST_TTL_S = 30 * 86400
KEPT_AFTER_S = 7 * 86400  # used and expired tokens stay this long, to be found in an inquiry
_STEM = re.compile(r"([0-9a-f]{64})\.json", re.ASCII)
_USED = "used-"


@value
class StoredToken:
    """One stored token: the SHA-256 of its secret (hex), the name it is good for, when it ends."""

    digest: str
    name: str
    expires: int

    def matches(self, proof: str, csr_der: bytes) -> bool:
        """Whether the proof was made of this token's secret and that CSR."""
        return hmac.compare_digest(_proof(self.digest, csr_der), proof)


def prove(secret: str, csr_der: bytes) -> str:
    """What the listener queues in place of the secret; worthless for any other CSR."""
    return _proof(_digest(secret), csr_der)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _proof(digest: str, csr_der: bytes) -> str:
    return hmac.new(bytes.fromhex(digest), csr_der, hashlib.sha256).hexdigest()


class TokenStore:
    """The tokens of one dispatcher; for signing commands only."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def make(self, name: str, ttl_s: int, ca_fingerprint: str) -> str:
        """A new token for the name; the only time its secret is in our hands.

        Raises: InvalidNameError; InvalidInputError for a lifetime out of range; StorageError.
        """
        folded = check_agent_name(name, "name")
        if not 1 <= ttl_s <= MOST_TTL_S:
            raise InvalidInputError(f"a token lives from 1 s to {MOST_TTL_S // 86400} days", field="ttl")
        import secrets

        secret = secrets.token_urlsafe(32)
        files.make_dirs(self.directory, 0o700)
        document = {"name": folded, "expires": clock.epoch_now() + ttl_s}
        path = os.path.join(self.directory, f"{_digest(secret)}.json")
        files.write_json(path, document, TOKEN_MODE, exclusive=True)
        return format_token(ca_fingerprint, secret)

    def find(self, name: str, proof: str, csr_der: bytes, now: int) -> StoredToken | None:
        """The unused token for the name that the proof was made of, None if there is none in force."""
        for token in self._load():
            if token.name == name and token.expires > now and token.matches(proof, csr_der):
                return token
        return None

    def consume(self, token: StoredToken) -> bool:
        """Use the token up; False if another signer did first. Raises: StorageError."""
        path = os.path.join(self.directory, f"{token.digest}.json")
        try:
            os.rename(path, os.path.join(self.directory, f"{_USED}{token.digest}.json"))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=path) from error
        return True

    def purge(self, now: int) -> int:
        """Remove tokens that ended or were used more than a week ago; gives how many."""
        removed = 0
        for name in self._names():
            path = os.path.join(self.directory, name)
            document = _read(path)
            if document is not None and document[1] + KEPT_AFTER_S < now:
                removed += files.remove(path)
        return removed

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(error.strerror or str(error), path=self.directory) from error

    def _load(self) -> list[StoredToken]:
        found = []
        for name in self._names():
            stem = _STEM.fullmatch(name)
            document = _read(os.path.join(self.directory, name)) if stem else None
            if stem and document is not None:
                found.append(StoredToken(stem[1], *document))
        return found


def _read(path: str) -> tuple[str, int] | None:
    """(name, expiry) of a stored token, None if it vanished or is damaged."""
    try:
        document = files.read_json(path)
    except StorageError:
        return None
    if not isinstance(document, dict):
        return None
    name, expires = document.get("name"), document.get("expires")
    return (name, expires) if isinstance(name, str) and isinstance(expires, int) else None
