"""A server that begins an answer and never ends it, as one that sends a byte every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

from tests.modelchain.store.odd_server import running


@contextmanager
def dripping(beginning: bytes, certificate: Path | None = None) -> Iterator[tuple[str, threading.Event]]:
    """Gives the server's address, and what is set once a request was answered with that beginning. The connection stays
    open until the client leaves. With a certificate it speaks TLS.
    """
    begun = threading.Event()

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            request = b""
            while b"\r\n\r\n" not in request:
                request += self.request.recv(65536)
            self.request.sendall(beginning)
            begun.set()
            with suppress(OSError):
                while self.request.recv(65536):
                    pass

    server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with running(server, certificate) as address:
        yield address, begun
