"""The work of an agent without a fork for each connection: one process, one connection after another.

    python one_process_agent.py IP PEM CA [SPOOL]      prints {"port": N} and serves until killed

Mutual TLS, one `POST /run` read, `/bin/true` started and its two pipes read to their end, the answer
written. With a SPOOL directory the run is on disk before it starts and after it ends, as agents keep it.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys


def run_true() -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of /bin/true."""
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    pid = os.posix_spawn(
        "/bin/true",
        ["/bin/true"],
        {"PATH": "/usr/bin:/bin"},
        file_actions=[(os.POSIX_SPAWN_DUP2, out_write, 1), (os.POSIX_SPAWN_DUP2, err_write, 2)],
        setsid=True,
    )
    os.close(out_write)
    os.close(err_write)
    stdout, stderr = os.read(out_read, 65536), os.read(err_read, 65536)
    os.close(out_read)
    os.close(err_read)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stdout, stderr


def keep(spool: str, reqid: str, document: object) -> None:
    """Write a record of the run durably, whole or not at all."""
    if not spool:
        return
    with open(f"{spool}/.tmp-{reqid}", "w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{spool}/.tmp-{reqid}", f"{spool}/{reqid}.json")
    directory = os.open(spool, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def serve_one(connection: ssl.SSLSocket, spool: str) -> None:
    """Read a request, run, answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(16384)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += connection.recv(16384)
    asked = json.loads(body)
    keep(spool, asked["reqid"], {"script": asked["script"], "status": "running"})
    code, stdout, stderr = run_true()
    answer = json.dumps(
        {
            "script": asked["script"],
            "exit": code,
            "stdout": stdout.decode(),
            "stderr": stderr.decode(),
            "reqid": asked["reqid"],
        }
    ).encode()
    keep(spool, asked["reqid"], {"script": asked["script"], "status": "completed", "exit": code})
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
    )


def main() -> None:
    """Serve on a free port of the address."""
    ip, pem, ca, spool = [*sys.argv[1:], ""][:4]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    context.load_cert_chain(pem)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server((ip, 0), backlog=1024)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    while True:
        plain, _ = listener.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each flight waits 40 ms
        try:
            with context.wrap_socket(plain, server_side=True) as connection:
                serve_one(connection, spool)
                connection.settimeout(1)
                connection.unwrap()
        except OSError:
            continue


if __name__ == "__main__":
    main()
