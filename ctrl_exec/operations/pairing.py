"""Deciding on pairing requests: the signer.

Owns what happens between a queued request and a registered agent: the root-only copy a person is
shown, the claim, the checks, the certificate, the record, the answer. Runs where `ca.key` may be
read and nothing listens. Must not know terminals or sockets.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ctrl_exec.ca.csr import check_csr
from ctrl_exec.ca.identity import load_identity, read_certificate
from ctrl_exec.ca.requests import (
    PairingAnswer,
    PairingQueue,
    PairingRequest,
    decode_request,
)
from ctrl_exec.ca.tokens import TokenStore
from ctrl_exec.common import clock, files
from ctrl_exec.common.certificate import ca_fingerprint
from ctrl_exec.common.errors import (
    CertificateError,
    ConflictError,
    CtrlExecError,
    InvalidInputError,
    PairingError,
    StorageError,
    UnknownPairingError,
)
from ctrl_exec.common.pairing_code import legacy_code, pairing_code
from ctrl_exec.common.value import as_dict, field, replace, value
from ctrl_exec.operations.ownership import owners_of, private_directory
from ctrl_exec.services.registry import AgentRecord, Registry, check_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ctrl_exec.ca.authority import CertificateAuthority, IssuedCertificate
    from ctrl_exec.ca.csr import SigningRequest
    from ctrl_exec.ca.requests import QueuedDecision
    from ctrl_exec.common.log import Log
    from ctrl_exec.config import Config

COPY_MODE = 0o600
SIGNER_SEEN_S = 900
BEAT_S = 5.0
RELAY_WARNING = "its code does not protect against a relay in the middle"


@value
class ShownRequest:
    """A request as it was copied for showing, with what a person needs to decide.

    `csr_digest` is the SHA-256 of the CSR's DER: a decision is for that and nothing else.
    """

    request: PairingRequest
    code: str
    csr_digest: str
    fingerprint: str
    is_registered: bool = False
    is_revoked: bool = False

    def as_json(self) -> dict[str, object]:
        """`{id, hostname, ip, port, lookup_by, code, legacy, token, received, …}`."""
        request = self.request
        return {
            "id": request.id,
            "hostname": request.hostname,
            "ip": request.ip,
            "remote_ip": request.remote_ip,
            "port": request.port,
            "lookup_by": request.lookup_by,
            "code": self.code,
            "legacy": request.is_legacy,
            "token": bool(request.proof),
            "received": request.received,
            "csr_sha256": self.csr_digest,
            "fingerprint": self.fingerprint,
            "registered": self.is_registered,
            "revoked": self.is_revoked,
        }


@value
class Approval:
    """What the approver adds to a yes; unset fields follow the agent's wishes.

    `code` is compared with the request's when given; `is_legacy` and `is_replacing` allow what is
    otherwise refused. `csr_digest` is the CSR the decision was taken for, when it came by queue.
    """

    ip: str = ""
    port: int = 0
    lookup_by: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    code: str = ""
    csr_digest: str = ""
    is_legacy: bool = False
    is_replacing: bool = False
    by: str = field(default="cli", doc="Who decided, for the log.")


def signer_dir(config: Config) -> str:
    """Where the signer keeps what only it may write."""
    return os.path.join(config.state_dir, "signer")


def open_queue(config: Config) -> PairingQueue:
    """The pairing queue of the configuration."""
    return PairingQueue(
        config.pairing_dir,
        most=config.pairing_max_queue,
        stale_s=config.pairing_timeout,
        owner=owners_of(config).service,
    )


def open_registry(config: Config) -> Registry:
    """The registry for a signing command: what it writes is handed to its owner."""
    owners = owners_of(config)
    return Registry(
        config.agents_dir,
        config.revoked_path,
        config.contacts_dir,
        owner=owners.trusted,
        contact_owner=owners.service,
    )


def open_tokens(config: Config) -> TokenStore:
    """The pairing tokens of the configuration; to be used by who may sign."""
    return TokenStore(os.path.join(signer_dir(config), "tokens"))


class Signer:
    """The one who decides: shows requests, approves, denies, and works through what needs no person."""

    def __init__(self, config: Config, log: Log, *, now: Callable[[], datetime] = clock.utc_now) -> None:
        self._config = config
        self._log = log
        self._now = now
        self._copies_dir = os.path.join(signer_dir(config), "shown")
        self.queue = open_queue(config)
        self.registry = open_registry(config)
        self.tokens = open_tokens(config)
        self._beat_due = 0.0

    # Showing

    def requests(self) -> tuple[ShownRequest, ...]:
        """The requests that wait for a decision, oldest first; those whose CSR is bad are left out."""
        found = []
        for request in self.queue.waiting():
            with suppress(CertificateError, InvalidInputError):
                found.append(self._show(request))
        return tuple(found)

    def find(self, selector: str) -> ShownRequest:
        """The waiting request of that id, or of that host name where it is unique.

        Raises: UnknownPairingError; ConflictError when a name has several requests.
        """
        waiting = self.requests()
        matching = [each for each in waiting if each.request.id == selector]
        matching = matching or [each for each in waiting if each.request.hostname == selector.lower()]
        if not matching:
            raise UnknownPairingError(selector[:80])
        if len(matching) > 1:
            ids = ", ".join(each.request.id for each in matching)
            raise ConflictError(f"{len(matching)} requests wait for {selector}; name one by its id: {ids}")
        return matching[0]

    def _show(self, request: PairingRequest) -> ShownRequest:
        copied = self._copy(request)
        csr = check_csr(copied.csr)
        return ShownRequest(
            request=copied,
            code=self._code(copied, csr),
            csr_digest=csr.digest,
            fingerprint=csr.fingerprint,
            is_registered=self._is_registered(copied.hostname),
            is_revoked=self.registry.is_revoked(csr.fingerprint),
        )

    def _copy(self, request: PairingRequest) -> PairingRequest:
        """The request as it was first copied to where only the signer writes.

        Who took the listener over may swap the queued file after a person has seen it; the first
        copy stays. A process that may only look shows the queued one.
        """
        path = os.path.join(self._copies_dir, f"{request.id}.json")
        if not self._may_sign():
            return request
        private_directory(self._copies_dir)
        with suppress(FileExistsError):
            files.write_json(path, as_dict(request), COPY_MODE, exclusive=True)
        try:
            return decode_request(files.read_bounded(path, 1 << 20))
        except FileNotFoundError:  # decided by another signer in this very moment
            return request

    def _may_sign(self) -> bool:
        return os.access(self._config.ca_key_path, os.R_OK)

    def _code(self, request: PairingRequest, csr: SigningRequest) -> str:
        if request.is_legacy:
            return legacy_code(request.csr)
        return pairing_code(
            csr.der,
            read_certificate(self._config.ca_cert_path, made_by="setup-ca"),
            load_identity(self._config.cert_path).der,
            agent_random=bytes.fromhex(request.agent_random),
            server_random=bytes.fromhex(request.server_random),
        )

    def _is_registered(self, name: str) -> bool:
        try:
            return self.registry.find(name) is not None
        except StorageError:  # a damaged record holds its name all the same
            return True

    # Deciding

    def approve(self, selector: str, approval: Approval) -> AgentRecord:
        """Sign, register and answer one request.

        Raises: UnknownPairingError; PairingError when the approval does not fit it; ConflictError
        when the name is taken or someone else decides; CertificateError; StorageError.
        """
        shown = self.find(selector)
        self._check(shown, approval)
        authority = self._authority()
        self._claim(shown)
        try:
            record = self._enrol(shown, approval, authority)
        except BaseException:
            self.queue.release(shown.request.id)
            raise
        self._forget(shown.request.id)
        return record

    def deny(self, selector: str, reason: str = "", *, by: str = "cli") -> ShownRequest:
        """Refuse one request. Raises: UnknownPairingError; ConflictError; StorageError."""
        shown = self.find(selector)
        self._claim(shown)
        self._refuse(shown.request, shown.fingerprint, reason or "denied by the approver", by)
        return shown

    def _check(self, shown: ShownRequest, approval: Approval) -> None:
        request = shown.request
        if approval.csr_digest and approval.csr_digest != shown.csr_digest:
            raise PairingError(f"{request.id} is not the request that was decided on: its CSR differs")
        if approval.code and approval.code != shown.code:
            raise PairingError(
                f"the code of {request.hostname} is not {approval.code}: deny it unless the agent shows "
                f"{shown.code}"
            )
        if shown.is_revoked:
            raise PairingError(f"the key of {request.hostname} was revoked; it must make a new one")
        if request.is_legacy and not approval.is_legacy:
            raise PairingError(
                f"{request.hostname} pairs in the legacy way: {RELAY_WARNING}; approve with --legacy"
            )
        if shown.is_registered and not approval.is_replacing:
            raise ConflictError(f"{request.hostname} is already registered; --replace gives its name away")

    def _claim(self, shown: ShownRequest) -> None:
        claimed = self.queue.claim(shown.request.id)
        if claimed is None:
            raise ConflictError(
                f"{shown.request.id} was decided meanwhile, or {shown.request.hostname} went away"
            )
        if claimed != shown.request:
            self._refuse(shown.request, shown.fingerprint, "the request changed after it was shown", "signer")
            raise PairingError(f"{shown.request.id} changed after it was shown; it was refused")

    def _enrol(self, shown: ShownRequest, approval: Approval, authority: CertificateAuthority) -> AgentRecord:
        request = shown.request
        now = self._now()
        identity = load_identity(self._config.cert_path)
        csr = check_csr(request.csr)
        draft = self._record(request, approval, csr.fingerprint, identity.serial)
        issued = authority.issue_agent(csr.spki, request.hostname, days=self._config.cert_days, now=now)
        record = _completed(draft, issued, now)
        self.registry.save(record, replacing=approval.is_replacing)
        self.queue.answer(
            PairingAnswer(
                id=request.id,
                status="approved",
                hostname=request.hostname,
                fingerprint=csr.fingerprint,
                at=int(time.time()),
                cert=issued.pem,
                ca=authority.pem,
                dispatcher_serial=identity.serial,
                dispatcher_id=identity.dispatcher_id(self._config.dispatcher_id),
            )
        )
        self._log.info(
            "pair-approve", agent=record.hostname, ip=record.ip, reqid=request.id, serial=record.serial,
            by=approval.by, legacy=request.is_legacy, fingerprint=record.fingerprint,
        )  # fmt: skip
        return record

    def _record(
        self, request: PairingRequest, approval: Approval, fingerprint: str, dispatcher_serial: str
    ) -> AgentRecord:
        """The record of the agent-to-be, checked before anything is signed. Raises: InvalidInputError."""
        return check_record(
            AgentRecord(
                hostname=request.hostname,
                ip=approval.ip or request.ip,
                port=approval.port or request.port,
                lookup_by=approval.lookup_by or request.lookup_by,
                reqid=request.id,
                fingerprint=fingerprint,
                tags=approval.tags,
                dispatcher_serial=dispatcher_serial,
                serial_status="current",
            )
        )

    def _refuse(self, request: PairingRequest, fingerprint: str, reason: str, by: str) -> None:
        at = int(time.time())
        self.queue.answer(
            PairingAnswer(request.id, "denied", request.hostname, fingerprint, at, reason=reason)
        )
        self._log.info("pair-deny", agent=request.hostname, reqid=request.id, reason=reason, by=by)
        self._forget(request.id)

    def _forget(self, request_id: str) -> None:
        with suppress(StorageError):
            files.remove(os.path.join(self._copies_dir, f"{request_id}.json"))

    def _authority(self) -> CertificateAuthority:
        private_directory(signer_dir(self._config))
        from ctrl_exec.ca.authority import load_authority

        return load_authority(self._config.ca_key_path, self._config.ca_cert_path)

    # Work without a person

    def turn(self) -> None:
        """Do what needs no person: say that a signer lives, queued decisions, tokens, tidying up."""
        now = int(time.time())
        # by a clock of our own: what the queue says of the last beat, others may write
        if clock.monotonic() >= self._beat_due:
            self._beat_due = clock.monotonic() + BEAT_S
            self.queue.beat(now)
            self.queue.purge(now)
            self._tidy(now)
        if self._config.pairing_api_approve:  # else nobody but a signer may decide
            for decision in self.queue.take_decisions():
                self._carry_out(decision)
        for request in self.queue.waiting():
            if request.proof:
                with suppress(CertificateError, InvalidInputError):
                    self._redeem(self._show(request), now)

    def _carry_out(self, decision: QueuedDecision) -> None:
        by = decision.by or "api"
        try:
            if decision.action != "approve":
                self.deny(decision.id, decision.reason, by=by)
            elif not decision.code:
                raise PairingError("a queued approval must bring the code its person compared")
            else:
                self.approve(decision.id, Approval(csr_digest=decision.csr_digest, code=decision.code, by=by))
        except CtrlExecError as error:
            self._log.warning("pair-reject", reqid=decision.id, reason=str(error))

    def _redeem(self, shown: ShownRequest, now: int) -> None:
        """Approve a request that came with a pairing token, or refuse it.

        The request is claimed first: another signer must not judge it by a token that this one is
        using up. The token is used up before anything is signed.
        """
        request = shown.request
        try:
            self._claim(shown)
            try:
                objection = self._token_objection(shown, now)
                if objection:
                    self._refuse(request, shown.fingerprint, objection, "token")
                    return
                self._enrol(shown, Approval(by="token"), self._authority())
            except BaseException:
                self.queue.release(request.id)
                raise
            self._forget(request.id)
        except CtrlExecError as error:
            self._log.warning("pair-reject", agent=request.hostname, reqid=request.id, reason=str(error))

    def _token_objection(self, shown: ShownRequest, now: int) -> str:
        """Why the token does not let the agent in; empty when it does, and is used up by that."""
        request = shown.request
        token = self.tokens.find(request.hostname, request.proof, check_csr(request.csr).der, now)
        if token is None:
            return "the pairing token is not valid for this name now"
        if shown.is_registered or shown.is_revoked:
            return "a pairing token never replaces a name"
        if request.is_legacy:
            return "a pairing token does not go with a legacy request"
        return "" if self.tokens.consume(token) else "the pairing token was used meanwhile"

    def _tidy(self, now: int) -> None:
        """Remove copies of requests that are gone, and tokens long past."""
        with suppress(OSError, StorageError):
            waiting = {f"{each.id}.json" for each in self.queue.waiting()}
            for name in os.listdir(self._copies_dir):
                path = os.path.join(self._copies_dir, name)
                if name not in waiting and now - os.stat(path).st_mtime > self._config.pairing_timeout:
                    files.remove(path)
            self.tokens.purge(now)


def _completed(draft: AgentRecord, issued: IssuedCertificate, now: datetime) -> AgentRecord:
    return replace(
        draft, serial=issued.serial, expiry=clock.openssl_time(issued.not_after), paired=clock.iso_z(now)
    )


def make_token(config: Config, name: str, ttl_s: int) -> str:
    """A pairing token for the name. Raises: CertificateError without a CA; InvalidInputError."""
    private_directory(signer_dir(config))
    authority = ca_fingerprint(read_certificate(config.ca_cert_path, made_by="setup-ca"))
    return open_tokens(config).make(name, ttl_s, authority)
