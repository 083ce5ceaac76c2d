"""Endpoints of stores that take connections and never answer: thousands of addresses, one socket."""

from __future__ import annotations

import socket
import threading
from collections import deque

HELD = 1024  # connections at once; a client has left an older one long ago


class SilentEndpoints:
    """Listens at every address of 127.0.0.0/8, and says nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("0.0.0.0", 0), backlog=4096)  # noqa: S104  as text says
        self.port: int = self._socket.getsockname()[1]
        self.accepted = 0  # connections
        self._held: deque[socket.socket] = deque()
        self._thread = threading.Thread(target=self._accept, name="silent endpoints", daemon=True)
        self._thread.start()

    @property
    def pattern(self) -> str:
        """What the operator has to allow."""
        return f"http://127.*:{self.port}"

    def url(self, number: int) -> str:
        """One of 65,536 endpoints."""
        return f"http://127.1.{number >> 8}.{number & 0xFF}:{self.port}"

    def close(self) -> None:
        """End; every connection with it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for connection in self._held:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            self.accepted += 1
            self._held.append(connection)
            if len(self._held) > HELD:
                self._held.popleft().close()
