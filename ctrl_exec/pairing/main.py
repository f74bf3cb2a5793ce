"""The pairing listener (7444): a process of its own, without root, without the CA's key.

Started by `ctrl-exec pairing-mode`, whose process is the signer. It becomes the service user before
it opens anything of state, serves `POST /pair`, and ends when its standard input closes: with the
signer gone nobody could decide. It tells the signer where it listens by one line of JSON on
standard output.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys

from ctrl_exec.common.errors import ConfigError, CtrlExecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from ctrl_exec.common.log import Log
    from ctrl_exec.common.server_settings import ServerSettings
    from ctrl_exec.common.tls import Context
    from ctrl_exec.config import Config

EXIT_CONFIG = 78
EXIT_FAILED = 1
HANDSHAKE_S = 10.0
HEAD_S = 10.0
BODY_S = 15.0
EXTRA_CHILDREN = 64  # connections beyond those that wait in the queue


def main(words: Sequence[str] | None = None) -> NoReturn:
    """`python3 -m ctrl_exec.pairing.main CONFIG`: serve until told to stop."""
    from ctrl_exec.common.process import drop_privileges, use_default_sigchld
    from ctrl_exec.config import load_config

    use_default_sigchld()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the signer, which ends us
    given = list(sys.argv[1:] if words is None else words)
    try:
        config = load_config(given[0] if given else None)
        drop_privileges(config.service_user, config.service_group)
        end_with_parent()
        listen(config)
    except ConfigError as error:
        _leave(EXIT_CONFIG, error)
    except CtrlExecError as error:
        _leave(EXIT_FAILED, error)
    _leave(0)


def _leave(code: int, error: Exception | None = None) -> NoReturn:
    if error is not None:
        report({"error": str(error)})
    os._exit(code)


def report(document: dict[str, object]) -> None:
    """One line for the signer; if it has gone, there is nobody to tell."""
    try:
        os.write(1, json.dumps(document).encode("ascii") + b"\n")
    except OSError:
        return


def end_with_parent() -> None:
    """Have SIGTERM sent to us when the pipe on standard input closes, however the signer ends.

    Source: fcntl(2), F_SETSIG; a pipe whose last writer closes signals its readers.
    """
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        if os.read(0, 1) == b"":  # it was closed before we listened for that
            os._exit(0)
    except BlockingIOError:
        return


def listen(config: Config) -> None:
    """Serve the pairing port. Raises: ServiceError, CertificateError, StorageError."""
    from ctrl_exec.ca.csr import preload
    from ctrl_exec.common.log import Log

    preload()
    log = Log("ctrl-exec-pairing", config.log_target, config.log_format)
    os.umask(0o007)
    serve(config, log)


def serve(config: Config, log: Log) -> None:
    """Put the server together and run it until SIGTERM."""
    from ctrl_exec.ca.identity import read_certificate
    from ctrl_exec.ca.requests import PairingQueue
    from ctrl_exec.common.certificate import ca_fingerprint, der_to_pem
    from ctrl_exec.common.http import ForkingServer
    from ctrl_exec.common.server_settings import ServerHooks
    from ctrl_exec.pairing.exchange import Announced, PairingApplication, refuse
    from ctrl_exec.pairing.rate import PairingRate
    from ctrl_exec.services.registry import Registry

    queue = PairingQueue(config.pairing_dir, most=config.pairing_max_queue, stale_s=config.pairing_timeout)
    queue.prepare()
    registry = Registry(config.agents_dir, config.revoked_path, config.contacts_dir)
    ca_der = read_certificate(config.ca_cert_path, made_by="setup-ca")
    announced = Announced(der_to_pem(ca_der), ca_fingerprint(ca_der))
    application = PairingApplication(queue, registry, announced, log, timeout_s=config.pairing_timeout)

    def on_ready(addresses: tuple[str, ...]) -> None:
        log.info("start", address=addresses, queue=config.pairing_max_queue)
        report({"addresses": list(addresses)})

    hooks = ServerHooks(
        admit=PairingRate(config.pairing_rate_limit).admit,
        on_ready=on_ready,
        refuse=refuse,
        on_tls_failure=lambda remote_ip, reason: log.info("tls-failure", peer=remote_ip, reason=reason),
    )
    ForkingServer(
        server_settings(config), application, tls=lambda: server_tls(config), log=log, hooks=hooks
    ).serve()
    log.info("stop")


def server_settings(config: Config) -> ServerSettings:
    """Room for everyone in the queue and for some who are not yet."""
    from ctrl_exec.common.conversation import Timing
    from ctrl_exec.common.parser import ParserLimits
    from ctrl_exec.common.server_settings import ServerSettings
    from ctrl_exec.common.value import replace
    from ctrl_exec.pairing.exchange import BODY_LIMIT_BYTES

    return ServerSettings(
        addresses=tuple((address, config.pairing_port) for address in config.pairing_bind),
        max_children=config.pairing_max_queue + EXTRA_CHILDREN,
        drain_s=0,
        log_prefix="pair-",
        limits=replace(ParserLimits(), body_bytes=BODY_LIMIT_BYTES),
        timing=Timing(handshake_s=HANDSHAKE_S, head_s=HEAD_S, body_s=BODY_S),
    )


def server_tls(config: Config) -> Context:
    """The dispatcher's own certificate, with the CA's behind it in the chain, no client certificate.

    An agent that was given the CA's fingerprint finds that certificate in the chain.
    """
    from ctrl_exec.common.tls import server_context

    context = server_context(config.cert_path, config.key_path)
    context.load_verify_locations(cafile=config.ca_cert_path)  # OpenSSL completes the chain from it
    return context


if __name__ == "__main__":
    main()
