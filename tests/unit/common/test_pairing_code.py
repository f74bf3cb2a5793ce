"""The six digits both sides compute, by fixed vectors, and the outer form of tokens."""

from __future__ import annotations

import hashlib

import pytest

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.pairing_code import (
    commitment,
    format_token,
    legacy_code,
    pairing_code,
    read_random,
    split_token,
)

AGENT_RANDOM = bytes(range(32))
SERVER_RANDOM = bytes(range(32, 64))
FINGERPRINT = "ab" * 32


def test_the_code_of_protocol_2_by_a_fixed_vector() -> None:
    """First four bytes of SHA-256(CSR, CA, server, r_a, r_d), modulo a million, six digits."""
    code = pairing_code(b"csr", b"ca", b"server", agent_random=AGENT_RANDOM, server_random=SERVER_RANDOM)
    assert code == "749930"
    digest = hashlib.sha256(b"csrcaserver" + AGENT_RANDOM + SERVER_RANDOM).digest()
    assert code == f"{int.from_bytes(digest[:4], 'big') % 1000000:06d}"


def test_the_legacy_code_by_a_fixed_vector() -> None:
    """First four bytes of SHA-256 of the CSR's PEM text, as it stands."""
    pem = "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n"
    assert legacy_code(pem) == "334026"
    assert legacy_code(pem.strip()) != legacy_code(pem)


def test_small_codes_keep_their_leading_zeros() -> None:
    """There are always six digits."""
    codes = {legacy_code(str(number)) for number in range(3000)}
    assert all(len(code) == 6 and code.isdigit() for code in codes)
    assert any(code.startswith("00") for code in codes)


@pytest.mark.parametrize("place", range(5))
def test_every_part_changes_the_code(place: int) -> None:
    """A relay that replaces CSR, CA, server certificate or a random gets another code."""
    parts = [b"csr", b"ca", b"server", AGENT_RANDOM, SERVER_RANDOM]
    parts[place] = parts[place][:-1] + b"!"

    def code(csr: bytes, ca: bytes, server: bytes, agent: bytes, dispatcher: bytes) -> str:
        return pairing_code(csr, ca, server, agent_random=agent, server_random=dispatcher)

    assert code(*parts) != code(b"csr", b"ca", b"server", AGENT_RANDOM, SERVER_RANDOM)


def test_the_commitment_is_a_hash_of_the_bytes() -> None:
    """`commit` is SHA-256 of the 32 bytes, not of their hex text."""
    assert commitment(AGENT_RANDOM) == hashlib.sha256(AGENT_RANDOM).hexdigest()


@pytest.mark.parametrize("text", ["", "ab", "AB" * 32, "g" * 64, "a" * 63, "a" * 65, None, 7, b"a" * 64])
def test_a_random_is_64_lower_case_hex_digits(text: object) -> None:
    """Anything else is refused with the field's name."""
    with pytest.raises(InvalidInputError, match="r_d: expected 64"):
        read_random(text, "r_d")
    assert read_random("00" * 32, "r_d") == bytes(32)


def test_a_token_splits_as_it_was_made() -> None:
    """The CA's fingerprint and the secret come back."""
    token = format_token(FINGERPRINT, "S" * 43)
    assert token == f"ctpair_{FINGERPRINT}.{'S' * 43}"
    assert split_token(token) == (FINGERPRINT, "S" * 43)


@pytest.mark.parametrize(
    "token", ["", "ctpair_", f"ctpair_{'ab' * 31}.{'S' * 43}", f"{'ab' * 32}.{'S' * 43}",
              f"ctpair_{'ab' * 32}.short", f"ctpair_{'ab' * 32}.{'S' * 43}\n", f"ctpat_{'ab' * 32}.{'S' * 43}"],
)  # fmt: skip
def test_what_is_no_token_is_refused_without_being_shown(token: str) -> None:
    """The error never repeats what was given: it may hold a secret."""
    with pytest.raises(InvalidInputError) as caught:
        split_token(token)
    assert "SSSS" not in str(caught.value)
