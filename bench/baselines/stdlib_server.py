"""The standard library's forking HTTP server: as it comes, or with its limits raised; plain or TLS.

python stdlib_server.py [--raised] [--tls PEM]     prints {"port": N} and serves until killed
"""

from __future__ import annotations

import argparse
import json
import ssl
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ForkingMixIn


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with a small JSON document, as `/health` does."""

    def do_GET(self) -> None:
        """The document."""
        body = json.dumps({"ok": True, "version": "0.1.0"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ForkingMixIn, HTTPServer):
    """As it comes: a backlog of 5, 40 children, waits for children while it accepts."""


class RaisedServer(Server):
    """The same with room for many."""

    request_queue_size = 1024
    max_children = 256


def main() -> None:
    """Serve on a free port of 127.0.0.1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--raised", action="store_true")
    parser.add_argument("--tls", default="")
    options = parser.parse_args()
    server = (RaisedServer if options.raised else Server)(("127.0.0.1", 0), Handler)
    if options.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls)
        # raised: the handshake happens at the first reading, in the child, else in the parent's accept
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=not options.raised
        )
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
