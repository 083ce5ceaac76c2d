"""A wire between a client and a server that a test can cut at a chosen byte of a request or of an answer."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class Wire:
    """Passes TCP connections on to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._cuts: dict[str, list[int]] = {"request": [], "answer": [], "body": []}
        self._stalls = 0  # cuts of answers that stay open
        self._end = threading.Event()
        self.cut = 0  # requests and answers cut so far
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where a client connects to."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut_answers(self, *after_bytes: int) -> None:
        """Cut the next answers, each after so many bytes. At 0 the server has done its work and nobody hears."""
        with self._lock:
            self._cuts["answer"].extend(after_bytes)

    def stall_answers(self, *after_bytes: int) -> None:
        """From the next answers comes nothing after so many bytes, and the connection stays open."""
        with self._lock:
            self._cuts["answer"].extend(after_bytes)
            self._stalls += len(after_bytes)

    def cut_requests(self, *after_bytes: int) -> None:
        """Cut the next requests, each after so many bytes, as when the client is killed."""
        with self._lock:
            self._cuts["request"].extend(after_bytes)

    def cut_bodies(self, times: int) -> None:
        """Cut the next requests between their headers and their body (when the server says 100 Continue)."""
        with self._lock:
            self._cuts["body"].extend([0] * times)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._port))
                for relay in ((client, server, "request"), (server, client, "answer")):
                    threading.Thread(target=self._relay, args=relay, daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, kind: str) -> None:
        left: int | None = None  # bytes until the cut
        with suppress(OSError):
            while data := source.recv(65536):
                if kind == "answer" and data.startswith(b"HTTP/1.1 100 "):  # go on: not the answer yet
                    if self._take("body") is not None:
                        self._count()
                        break
                    interim, _, data = data.partition(b"\r\n\r\n")
                    target.sendall(interim + b"\r\n\r\n")
                    if not data:
                        continue
                if left is None:
                    left = self._take(kind)
                if left is None:
                    target.sendall(data)
                    continue
                target.sendall(data[:left])
                left -= len(data)
                if left <= 0:
                    if self._count(stalls=kind == "answer"):
                        self._end.wait()
                    break
        _close(source, target)

    def _take(self, kind: str) -> int | None:
        """After how many bytes the next of this kind is cut; None: it is not."""
        with self._lock:
            return self._cuts[kind].pop(0) if self._cuts[kind] else None

    def _count(self, *, stalls: bool = False) -> bool:
        """Something is cut. Whether its connection stays open."""
        with self._lock:
            self.cut += 1
            stays = stalls and self._stalls > 0
            self._stalls -= stays
            return stays


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
