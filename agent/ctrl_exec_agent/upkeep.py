"""What a dispatcher may do to the agent's trust: renew its certificate, announce a new serial.

Owns the messages of `/renew`, `/renew-complete` and `/rotate-serial`. A dispatcher acts for itself
only: whose serial is added or removed follows from the certificate it came with.
"""

from __future__ import annotations

import os
import signal

from ctrl_exec.common.certificate import CLIENT_AUTH, normalise_serial, parse_certificate, pem_to_der
from ctrl_exec.common.errors import CertificateError, CtrlExecError
from ctrl_exec.common.messages import parse_object, text_of
from ctrl_exec.common.suppression import suppress
from ctrl_exec_agent import renewal, trust
from ctrl_exec_agent.handlers import answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.routing import Request, Response
    from ctrl_exec_agent.generation import Parts
    from ctrl_exec_agent.handlers import Handlers, Peer


class Upkeep:
    """One method an endpoint; each takes the peer and the request."""

    def __init__(self, parts: Parts, handlers: Handlers, server_pid: int) -> None:
        self._parts = parts
        self._handlers = handlers
        self._server_pid = server_pid

    def renew(self, peer: Peer, request: Request) -> Response:
        """`POST /renew`: a CSR for the key we have."""
        config = self._parts.config
        reqid = _reqid_of(request)
        try:
            csr = renewal.make_csr(config.key_path, self._parts.name)
        except CtrlExecError as error:
            self._parts.log.error("renew", peer=peer.ip, dispatcher=peer.dispatcher, reason=str(error))
            return answer(200, {"status": "error", "error": "no CSR could be made", "reqid": reqid})
        self._parts.log.info("renew", peer=peer.ip, dispatcher=peer.dispatcher, reqid=reqid)
        return answer(200, {"status": "ok", "csr": csr, "reqid": reqid})

    def renew_complete(self, peer: Peer, request: Request) -> Response:
        """`POST /renew-complete`: check, stage and, where we may, use the new certificate."""
        found = parse_object(request.body)
        reqid = text_of(found, "reqid", "")[:64]
        log, config = self._parts.log, self._parts.config
        try:
            certificate = renewal.stage(config, text_of(found, "cert"))
            log.info("renew-complete", peer=peer.ip, dispatcher=peer.dispatcher, serial=certificate.serial)
            if renewal.can_promote(config):
                renewal.promote(config)
                log.info("cert-promote", serial=certificate.serial)
                self._reload_server()
        except CtrlExecError as error:
            log.warning("renew-complete", peer=peer.ip, dispatcher=peer.dispatcher, error=str(error))
            return answer(200, {"status": "error", "error": str(error), "reqid": reqid})
        return answer(200, {"status": "ok", "reqid": reqid, "staged": True})

    def rotate_serial(self, peer: Peer, request: Request) -> Response:
        """`POST /rotate-serial`: add or remove a serial of the asking dispatcher."""
        found = parse_object(request.body)
        reason = self._handlers.ask_rotation(peer, text_of(found, "token", ""))
        if reason:
            self._parts.log.warning("deny", what="rotate", peer=peer.ip, reason=reason)
            return answer(403, {"error": f"not authorised: {reason}", "status": "forbidden"})
        action = text_of(found, "action", "")
        try:
            serial = normalise_serial(text_of(found, "serial"))
            if action == "add":
                self._check_added(peer, serial, text_of(found, "cert", ""))
                trust.add_serial(self._parts.config.trust_path, serial, peer.dispatcher)
            elif action == "remove":
                _check_removed(peer, serial)
                trust.remove_serial(self._parts.config.trust_path, serial, peer.dispatcher)
            else:
                raise CertificateError("action: expected add or remove")
        except CtrlExecError as error:
            self._parts.log.warning("rotate", peer=peer.ip, dispatcher=peer.dispatcher, error=str(error))
            return answer(200, {"status": "error", "error": str(error)})
        self._parts.log.info("rotate", change=action, serial=serial, peer=peer.ip, dispatcher=peer.dispatcher)
        return answer(
            200, {"status": "ok", "action": action, "serial": serial, "dispatcher": peer.dispatcher}
        )

    def _check_added(self, peer: Peer, serial: str, pem: str) -> None:
        if not pem:
            if self._parts.config.allow_bare_serial:
                return
            raise CertificateError("cert: required; a bare serial is taken with allow_bare_serial = yes only")
        pem = renewal.only_certificate(pem)
        certificate = parse_certificate(pem_to_der(pem))
        if certificate.serial != serial:
            raise CertificateError("the certificate has another serial")
        if not certificate.allows(CLIENT_AUTH):
            raise CertificateError("the certificate does not allow clientAuth")
        if certificate.dispatcher_id not in (None, peer.dispatcher):
            raise CertificateError("the certificate is another dispatcher's")
        if serial in trust.load_revoked(self._parts.config.revoked_path):
            raise CertificateError("the serial is revoked here")
        renewal.check_chain(pem, self._parts.config.ca_path, "sslclient")

    def _reload_server(self) -> None:
        # the parent may have ended, and then ours is not it but init
        if os.getppid() == self._server_pid:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self._server_pid, signal.SIGHUP)


def _check_removed(peer: Peer, serial: str) -> None:
    if serial == peer.serial:
        raise CertificateError("a dispatcher can't remove the serial it comes with: it would lock itself out")


def _reqid_of(request: Request) -> str:
    return text_of(parse_object(request.body), "reqid", "")[:64] if request.body else ""
