"""The six digits that people compare at pairing, and what binds them.

Owns both derivations, the commitment, and the outer form of pairing tokens: what dispatcher and
agent must compute alike. Must not know the exchange that carries them.
"""

from __future__ import annotations

import hashlib
import re

from ctrl_exec.common.errors import InvalidInputError

PROTOCOL = 2
RANDOM_BYTES = 32
TOKEN_PREFIX = "ctpair_"  # noqa: S105 - a public prefix, no secret
_RANDOM = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TOKEN = re.compile(r"ctpair_([0-9a-f]{64})\.([A-Za-z0-9_-]{20,100})", re.ASCII)


def commitment(reveal: bytes) -> str:
    """What an agent sends of its random bytes before it has seen the dispatcher's, hex."""
    return hashlib.sha256(reveal).hexdigest()


def pairing_code(
    csr_der: bytes, ca_der: bytes, server_der: bytes, *, agent_random: bytes, server_random: bytes
) -> str:
    """The code of protocol 2.

    Both randoms enter it, and the agent's was committed to before the dispatcher's was known, so a
    relay that shows each side something else has one blind guess in a million, however many
    certificates it tries. The randoms have a fixed length; DER says its own.
    """
    return _digits(hashlib.sha256(csr_der + ca_der + server_der + agent_random + server_random).digest())


def legacy_code(csr_pem: str) -> str:
    """The code of older peers, made of the CSR's PEM text alone: no protection against a relay."""
    return _digits(hashlib.sha256(csr_pem.encode("utf-8", "surrogatepass")).digest())


def _digits(digest: bytes) -> str:
    return f"{int.from_bytes(digest[:4], 'big') % 1_000_000:06d}"


def read_random(text: object, field: str) -> bytes:
    """The bytes of a random or a commitment as it is sent. Raises: InvalidInputError."""
    if isinstance(text, str) and _RANDOM.fullmatch(text):
        return bytes.fromhex(text)
    raise InvalidInputError(f"{field}: expected 64 lower-case hex digits", field=field)


def format_token(ca_fingerprint: str, secret: str) -> str:
    """`ctpair_<CA fingerprint>.<secret>`."""
    return f"{TOKEN_PREFIX}{ca_fingerprint}.{secret}"


def split_token(token: str) -> tuple[str, str]:
    """(CA fingerprint, secret) of a pairing token.

    Raises: InvalidInputError, which never shows the token.
    """
    found = _TOKEN.fullmatch(token)
    if not found:
        raise InvalidInputError(
            "this is no pairing token: expected ctpair_<CA fingerprint>.<secret>", field="token"
        )
    return found[1], found[2]
