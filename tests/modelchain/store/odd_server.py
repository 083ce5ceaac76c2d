"""HTTP servers that are no S3 server, or one with habits of its own, for the errors that a store explains."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Answer:
    """What the server says to one request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] = b""  # in parts: sent without a length, until the client leaves


Respond = Callable[[str, str, bytes], Answer]  # method, path with query, body


@contextmanager
def serve(respond: Respond, certificate: Path | None = None) -> Iterator[str]:
    """A server on this machine; gives its address. With a certificate it speaks TLS."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            said = respond(self.command, self.path, body)
            self.send_response(said.status)
            whole = isinstance(said.body, bytes)
            parts = [said.body] if isinstance(said.body, bytes) else said.body
            length = {"Content-Length": str(len(said.body))} if isinstance(said.body, bytes) else {}
            for name, value in {**length, **said.headers}.items():
                self.send_header(name, value)
            self.close_connection = not whole
            self.end_headers()
            if self.command != "HEAD":
                with suppress(OSError):
                    for part in parts:
                        self.wfile.write(part)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler), certificate) as address:
        yield address


@contextmanager
def running(server: TCPServer, certificate: Path | None) -> Iterator[str]:
    """The server in a thread of its own; gives its address. With a certificate it speaks TLS."""
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"{'http' if certificate is None else 'https'}://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def redirect(status: int) -> Respond:
    """An ingress that sends everybody to https."""
    headers = {"Location": "https://elsewhere.example:9000/secret-path?token=hidden"}
    return lambda *_: Answer(status, headers)


def page(method: str, path: str, body: bytes) -> Answer:
    """A sign-in page, or the console of a store."""
    return Answer(
        200,
        {"Content-Type": "text/html; charset=utf-8"},
        b"<!doctype html><html><title>Sign in</title></html>",
    )


def json_api(method: str, path: str, body: bytes) -> Answer:
    """Some other service."""
    return Answer(200, {"Content-Type": "application/json"}, b"{}")


def endless_listing(method: str, path: str, body: bytes) -> Answer:
    """A server that ignores where a listing goes on."""
    more = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated>"
        b"<NextContinuationToken>x</NextContinuationToken></ListBucketResult>"
    )
    return Answer(200, {"Content-Type": "application/xml"}, more)


class WithoutETags:
    """An S3 server with objects in memory and no ETag in any answer: S3 does not require them."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def __call__(self, method: str, path: str, body: bytes) -> Answer:
        """Answer a request of one bucket, addressed by path."""
        parts = urlsplit(path)
        key = parts.path.lstrip("/").partition("/")[2]
        query = parse_qs(parts.query, keep_blank_values=True)
        modified = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if method == "PUT":
            self.objects[key] = body
            return Answer()
        if method == "DELETE":
            self.objects.pop(key, None)
            return Answer(204)
        if not key and method == "GET":
            return Answer(
                200, {"Content-Type": "application/xml"}, self._listing(query.get("prefix", [""])[0])
            )
        if not key:
            return Answer()
        if key not in self.objects:
            return Answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        return Answer(200, modified, self.objects[key])

    def _listing(self, prefix: str) -> bytes:
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, data in self.objects.items()
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def make_certificate(folder: Path, host: str, *, expired: bool = False) -> Path:
    """A certificate of that host, signed by itself, and its key, in one file."""
    key, request, certificate = folder / "key.pem", folder / "request.pem", folder / "certificate.pem"
    names, index, config = f"subjectAltName=DNS:{host}", folder / "index.txt", folder / "ca.cnf"
    subject = ("-subj", f"/CN={host}", "-addext", names)
    _openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, *subject)
    index.touch()
    config.write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndatabase={index}\nnew_certs_dir={folder}\nrand_serial=yes\n"
        "default_md=sha256\npolicy=any\ncopy_extensions=copy\n[any]\ncommonName=supplied\n"
    )
    end = "20200201000000Z" if expired else "20990101000000Z"
    validity = ("-startdate", "20200101000000Z", "-enddate", end)
    signing = ("-config", config, "-selfsign", "-keyfile", key, "-in", request, "-out", certificate)
    _openssl("ca", "-batch", "-notext", *signing, *validity)
    file = folder / f"{host}.pem"
    file.write_bytes(key.read_bytes() + certificate.read_bytes())
    return file


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
