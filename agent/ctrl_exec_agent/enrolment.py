"""Pairing with a dispatcher: key, request, the code to compare, and what is stored at the end.

Owns the agent's side of core §9.1. The private key is made here and never leaves; nothing is stored
in the agent's own files before a dispatcher's approval has been checked. Keys and CSRs are made by
the system's openssl. Must not know the commands that show what happens: it calls `say`.
"""

from __future__ import annotations

import binascii
import json
import os
import time
from contextlib import suppress

from ctrl_exec.common import files
from ctrl_exec.common.certificate import (
    CLIENT_AUTH,
    SERVER_AUTH,
    ca_fingerprint,
    der_to_pem,
    normalise_fingerprint,
    normalise_serial,
    parse_certificate,
    pem_to_der,
)
from ctrl_exec.common.errors import (
    CertificateError,
    CtrlExecError,
    InvalidInputError,
    PairingError,
    PeerError,
    ProgramError,
    UsageError,
)
from ctrl_exec.common.messages import parse_object, text_of
from ctrl_exec.common.names import check_agent_name, check_dispatcher_id
from ctrl_exec.common.pairing_code import (
    PROTOCOL,
    RANDOM_BYTES,
    commitment,
    legacy_code,
    pairing_code,
    read_random,
    split_token,
)
from ctrl_exec.common.value import replace, value
from ctrl_exec_agent.pairing_client import PairingClient
from ctrl_exec_agent.pairing_store import Enrolled, store
from ctrl_exec_agent.renewal import make_csr, run_openssl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrl_exec_agent.config import AgentConfig

KEY_SUFFIX = ".pairing"
RETRY_S = 2.0
CONNECT_S = 15.0
RELAY_WARNING = "this code does not protect against a relay in the middle"


@value
class PairingWish:
    """What the admin of this host asked for.

    `ca_fingerprint` and `token` are as typed, empty without; `lookup_by` and `ip` are wishes the
    approver may overrule.
    """

    dispatcher: str
    port: int = 7444
    ca_fingerprint: str = ""
    token: str = ""
    is_legacy: bool = False
    timeout_s: float = 600.0
    lookup_by: str = ""
    ip: str = ""


@value
class Offer:
    """What a dispatcher showed before the decision; a second connection must show the same.

    `ca_der` is empty for a legacy peer, which shows its CA only with the certificate.
    """

    server_der: bytes
    ca_der: bytes


@value
class _Draft:
    """Our side of the exchange: name, key file, and the CSR as sent and as hashed."""

    name: str
    key_path: str
    csr: str
    csr_der: bytes


def request_pairing(config: AgentConfig, wish: PairingWish, say: Callable[[str], None]) -> Enrolled:
    """Ask the dispatcher for a certificate, wait for its decision, store what it gives.

    A connection that breaks while a person decides is made again: the decision waits for our key.

    Raises: UsageError; PairingError when it is refused, not decided in time, or not to be trusted;
    PeerError when the dispatcher can't be reached; CertificateError; StorageError; ProgramError.
    """
    wish = check_wish(wish)
    trusted_ca = _find_ca(wish) if wish.ca_fingerprint else None
    draft = _make_draft(config)
    exchange = _Exchange(config, wish, draft, trusted_ca, say)
    try:
        approved = exchange.carry(time.monotonic() + wish.timeout_s)
        return store(config, draft.key_path, approved)
    finally:
        with suppress(CtrlExecError):
            files.remove(draft.key_path)


def check_wish(wish: PairingWish) -> PairingWish:
    """The wish with its CA fingerprint settled. Raises: UsageError."""
    try:
        fingerprint = normalise_fingerprint(wish.ca_fingerprint) if wish.ca_fingerprint else ""
        stated = split_token(wish.token)[0] if wish.token else fingerprint
    except (CertificateError, InvalidInputError) as error:
        raise UsageError(str(error)) from error
    if fingerprint not in ("", stated):
        raise UsageError("--ca-fingerprint is not that of the token's CA")
    if wish.is_legacy and stated:
        # an older dispatcher's certificate states no role, so that any agent's would pass the check
        raise UsageError("--legacy goes with neither --ca-fingerprint nor a token")
    if not 1 <= wish.port <= 65535:
        raise UsageError("--port: expected 1 to 65535")
    return replace(wish, ca_fingerprint=stated)


def _make_draft(config: AgentConfig) -> _Draft:
    """A new P-256 key in its own file beside the agent's key, and a CSR for it."""
    name = check_agent_name(config.agent_name, "hostname")
    key_path = config.key_path + KEY_SUFFIX
    files.make_dirs(os.path.dirname(key_path), 0o750)
    key = run_openssl(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    files.write_atomic(key_path, key, 0o600)
    csr = make_csr(key_path, name)
    body = csr.partition("-----BEGIN CERTIFICATE REQUEST-----")[2].partition("-----END")[0]
    return _Draft(name, key_path, csr, binascii.a2b_base64(body))


def _find_ca(wish: PairingWish) -> bytes:
    """The CA certificate of that fingerprint in the chain the server shows (DER).

    Nothing but a handshake has happened with that server: no token, no CSR has been sent.

    Raises: PairingError when it shows none.
    """
    host = f"[{wish.dispatcher}]" if ":" in wish.dispatcher else wish.dispatcher
    arguments = ["s_client", "-connect", f"{host}:{wish.port}", "-showcerts", "-noservername"]
    try:
        shown = run_openssl([*arguments, "-verify_quiet"]).decode("ascii", "replace")
    except ProgramError as error:
        raise PeerError(
            f"cannot reach {wish.dispatcher} port {wish.port}: {error}", kind="unreachable"
        ) from error
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    for part in shown.split(begin)[1:]:
        with suppress(CertificateError):
            der = pem_to_der(begin + part.partition(end)[0] + end)
            if ca_fingerprint(der) == wish.ca_fingerprint:
                return der
    raise PairingError(
        f"{wish.dispatcher} does not show the CA {wish.ca_fingerprint}: not the dispatcher you mean, or a "
        "relay; nothing was sent to it"
    )


class _Exchange:
    """One request, over as many connections as it takes."""

    def __init__(
        self,
        config: AgentConfig,
        wish: PairingWish,
        draft: _Draft,
        trusted_ca: bytes | None,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._wish = wish
        self._draft = draft
        self._trusted_ca = trusted_ca
        self._say = say
        self._offer: Offer | None = None

    def carry(self, deadline: float) -> Enrolled:
        """The approved certificates, checked. Raises: as `request_pairing`."""
        while True:
            try:
                return self._attempt(deadline)
            except PeerError as error:
                # before a dispatcher has shown itself there is nothing to come back to
                if self._offer is None or time.monotonic() + RETRY_S > deadline:
                    raise
                self._say(f"the connection broke ({error}); trying again")
                time.sleep(RETRY_S)

    def _attempt(self, deadline: float) -> Enrolled:
        client = PairingClient(self._wish.dispatcher, self._wish.port, self._trusted_ca)
        try:
            server_der = client.connect(min(deadline, time.monotonic() + CONNECT_S))
            self._check_server(server_der)
            reveal, nonce = os.urandom(RANDOM_BYTES), os.urandom(16).hex()
            client.send_request(self._request(reveal, nonce), self._wish.dispatcher)
            pending = self._read(
                client, min(deadline, time.monotonic() + CONNECT_S), "the dispatcher is silent"
            )
            code = self._accept_offer(client, pending, server_der, reveal)
            self._say(f"pairing code: {code}")
            final = self._read(
                client, deadline, "no decision in time; ask again when somebody can approve it"
            )
            return self._check_approved(final, nonce)
        except OSError as error:
            raise PeerError(f"{self._wish.dispatcher}: {error}", kind="lost") from error
        finally:
            client.close()

    def _check_server(self, server_der: bytes) -> None:
        """With a known CA the handshake checked the chain; here, that the leaf is a dispatcher's.

        Raises: PairingError; nothing was sent so far.
        """
        if self._trusted_ca is not None:
            leaf = parse_certificate(server_der)
            if leaf.dispatcher_id is None or not leaf.allows(CLIENT_AUTH):
                raise PairingError(
                    "the server's certificate is of the right CA but not a dispatcher's; "
                    "nothing was sent to it"
                )
        if self._offer is not None and self._offer.server_der != server_der:
            raise PairingError("another server answers now than at first; start again")

    def _request(self, reveal: bytes, nonce: str) -> dict[str, object]:
        wish = self._wish
        request: dict[str, object] = {
            "hostname": self._draft.name,
            "csr": self._draft.csr,
            "nonce": nonce,
            "port": self._config.port or 7443,
        }
        request |= {key: text for key, text in (("lookup_by", wish.lookup_by), ("ip", wish.ip)) if text}
        if wish.is_legacy:
            return request
        request |= {"protocol": PROTOCOL, "commit": commitment(reveal)}
        return request | ({"token": wish.token} if wish.token else {})

    def _read(self, client: PairingClient, deadline: float, silence: str) -> dict[str, object]:
        """The next answer. Raises: PairingError when it is a refusal, or `silence` when none comes."""
        try:
            found = parse_object(client.read_answer(deadline), "answer")
            status = text_of(found, "status")
            if status in ("denied", "error"):
                detail = text_of(found, "detail", "")
                reason = text_of(found, "reason", "no reason given")
                raise PairingError(f"the dispatcher says: {reason}" + (f" ({detail})" if detail else ""))
        except TimeoutError as error:
            raise PairingError(silence) from error
        except InvalidInputError as error:
            raise PairingError(f"the dispatcher's answer cannot be read ({error})") from error
        return found

    def _accept_offer(
        self, client: PairingClient, pending: dict[str, object], server_der: bytes, reveal: bytes
    ) -> str:
        """The code to show; in protocol 2 our random is revealed only now. Raises: PairingError."""
        if pending.get("status") != "pending":
            raise PairingError("the dispatcher decided before it asked anyone; not trusted")
        if self._wish.is_legacy:
            self._offer = Offer(server_der, b"")
            self._say(f"warning: {RELAY_WARNING}")
            return legacy_code(self._draft.csr)
        if pending.get("protocol") != PROTOCOL:
            raise PairingError(
                "the dispatcher speaks only the older pairing, or a relay stripped the newer one; "
                "if you know it is old, add --legacy: its code does not protect against a relay"
            )
        try:
            ca_der = pem_to_der(text_of(pending, "ca"))
            server_random = read_random(pending.get("r_d"), "r_d")
        except (InvalidInputError, CertificateError) as error:
            raise PairingError(f"the dispatcher's offer cannot be read ({error})") from error
        offer = Offer(server_der, ca_der)
        if self._offer not in (None, offer) or self._trusted_ca not in (None, ca_der):
            raise PairingError("the dispatcher shows another CA than before; not trusted")
        self._offer = offer
        client.send_line(json.dumps({"reveal": reveal.hex()}).encode("ascii"))
        return pairing_code(
            self._draft.csr_der, ca_der, server_der, agent_random=reveal, server_random=server_random
        )

    def _check_approved(self, final: dict[str, object], nonce: str) -> Enrolled:
        """What was approved, if it is for us, of the CA that was shown, and complete.

        Raises: PairingError.
        """
        try:
            if final.get("status") != "approved":
                raise PairingError("the dispatcher's answer is neither yes nor no")
            if final.get("nonce") != nonce:
                raise PairingError("the dispatcher's answer belongs to another request")
            enrolled = Enrolled(
                # written anew, so that nothing around the certificates is stored
                certificate_pem=der_to_pem(pem_to_der(text_of(final, "cert"))),
                ca_pem=der_to_pem(pem_to_der(text_of(final, "ca"))),
                dispatcher_serial=normalise_serial(text_of(final, "dispatcher_serial")),
                dispatcher_id=check_dispatcher_id(
                    text_of(final, "dispatcher_id", "") or text_of(final, "dispatcher_serial")
                ),
                is_legacy=self._wish.is_legacy,
            )
            self._check_certificates(enrolled)
        except (InvalidInputError, CertificateError) as error:
            raise PairingError(f"the dispatcher's approval is not to be trusted: {error}") from error
        return enrolled

    def _check_certificates(self, enrolled: Enrolled) -> None:
        ca_der = pem_to_der(enrolled.ca_pem)
        if self._offer is not None and self._offer.ca_der not in (b"", ca_der):
            raise CertificateError("its CA is not the one announced")
        leaf = parse_certificate(pem_to_der(enrolled.certificate_pem))
        spki = run_openssl(["pkey", "-in", self._draft.key_path, "-pubout", "-outform", "DER"])
        if leaf.fingerprint != ca_fingerprint(spki):
            raise CertificateError("the certificate is for another key")
        if not leaf.allows(SERVER_AUTH):
            raise CertificateError("the certificate does not allow serverAuth")
        check_issued(enrolled.certificate_pem, enrolled.ca_pem, self._draft.key_path + ".ca")


def check_issued(certificate_pem: str, ca_pem: str, scratch_path: str) -> None:
    """Whether the certificate chains to that CA. Raises: CertificateError."""
    from ctrl_exec_agent.renewal import check_chain

    files.write_atomic(scratch_path, ca_pem.encode("ascii", "replace"), 0o600)
    try:
        check_chain(certificate_pem, scratch_path, "sslserver")
    finally:
        files.remove(scratch_path)
