"""Data on web servers and behind fsspec: ranges, and what servers do wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import fsspec
import pytest

from modelchain.errors import ConfigurationError, UserDataError
from modelchain.resolved import ResolvedStore
from modelchain.store import (
    Bounds,
    Forbidden,
    NotFound,
    Replaced,
    Store,
    StoreError,
    StoreUnavailable,
    http,
    open_location,
    open_store,
    read_only,
)

CONTENT = bytes(range(256)) * 100
ACCESS = ResolvedStore(uri="unused")
Answer = Callable[[BaseHTTPRequestHandler], None]


def give(
    handler: BaseHTTPRequestHandler,
    *,
    cut: int = 0,
    ranges: bool = True,
    sized: bool = True,
    says: str | None = None,
    version: Mapping[str, str] = MappingProxyType({"ETag": '"one"'}),
) -> None:
    """The content, or the range that is asked for."""
    wanted = handler.headers.get("Range") if ranges else None
    first, last = 0, len(CONTENT) - 1
    if wanted is not None:
        begin, _, end = wanted.removeprefix("bytes=").partition("-")
        first, last = int(begin), min(int(end or last), last)
    if first > last:
        handler.send_response(416)
        handler.end_headers()
        return
    body = CONTENT[first : last + 1]
    handler.send_response(200 if wanted is None else 206)
    for name, value in version.items():
        handler.send_header(name, value)
    if sized:
        handler.send_header("Content-Length", str(len(body)))
    if wanted is not None:
        handler.send_header("Content-Range", says or f"bytes {first}-{last}/{len(CONTENT)}")
    handler.end_headers()
    handler.wfile.write(body[: len(body) - cut])


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Store]]:
    """A web server that answers as it is told, as a store."""
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Answer) -> Store:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nothing is logged."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return open_location(f"http://127.0.0.1:{server.server_port}/data", ACCESS)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_ranges_of_a_web_server_are_read(serve: Callable[[Answer], Store], tmp_path: Path) -> None:
    store = serve(give)
    info = store.head("a b/ü.tar")
    assert info is not None
    assert (info.size, info.etag) == (len(CONTENT), '"one"')
    assert store.get_range("a.tar", 300, 1000) == CONTENT[300:1300]
    assert store.get_range("a.tar", len(CONTENT) - 5, 1000) == CONTENT[-5:]
    assert store.get_range("a.tar", len(CONTENT), 10) == b""
    assert store.get("a.tar") == (CONTENT, '"one"')
    assert store.download("a.tar", tmp_path / "a") == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_redirects_are_followed(serve: Callable[[Answer], Store]) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/data"):
            handler.send_response(302)
            handler.send_header("Location", "/elsewhere")
            handler.end_headers()
        else:
            give(handler)

    assert serve(redirect).get_range("a.tar", 5, 5) == CONTENT[5:10]


def test_a_body_that_breaks_off_is_no_end_of_the_file(serve: Callable[[Answer], Store]) -> None:
    store = serve(lambda handler: give(handler, cut=3))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.get_range("a.tar", 0, 1000)


def test_a_body_that_breaks_off_without_a_length_is_no_end_of_the_file(
    serve: Callable[[Answer], Store],
) -> None:
    store = serve(lambda handler: give(handler, cut=3, sized=False))
    with pytest.raises(StoreUnavailable, match=r"a\.tar: 997 bytes came instead of 1000"):
        store.get_range("a.tar", 0, 1000)


@pytest.mark.parametrize(
    "says",
    ["bytes 0-1199/25600", "bytes 100-599/25600", "bytes 100-1099", "chunks 100-1099/25600"],
    ids=["another start", "another end", "no range", "another unit"],
)
def test_another_range_than_was_asked_for_is_refused(serve: Callable[[Answer], Store], says: str) -> None:
    store = serve(lambda handler: give(handler, says=says))
    with pytest.raises(
        StoreError, match=r"bytes 100-1099 were asked for, .* answers with others;.*[0-9]-"
    ) as raised:
        store.get_range("a.tar", 100, 1000)
    assert not isinstance(raised.value, StoreUnavailable), "who asks again gets the same"


@pytest.mark.parametrize(
    ("before", "after", "replaced"),
    [
        ({"ETag": '"one"'}, {"ETag": '"two"'}, True),
        ({"ETag": '"one"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, {"ETag": '"two"'}, True),
        ({"ETag": 'W/"one"'}, {"ETag": 'W/"two"'}, True),
        ({"ETag": 'W/"one"'}, {"ETag": '"one"'}, False),
        (
            {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
            {"Last-Modified": "Thu, 01 Jan 2026 00:00:01 GMT"},
            True,
        ),
        ({}, {}, False),
    ],
)
def test_a_file_that_was_replaced_by_one_as_large_is_not_read_for_it(
    serve: Callable[[Answer], Store],
    tmp_path: Path,
    before: dict[str, str],
    after: dict[str, str],
    *,
    replaced: bool,
) -> None:
    versions = [before, after]
    store = serve(
        lambda handler: give(handler, version=versions.pop(0) if len(versions) > 1 else versions[0])
    )
    info = store.head("a.tar")
    assert info is not None
    if not replaced:
        assert store.get_range_of("a.tar", 10, 20, info.etag) == CONTENT[10:30]
        return
    with pytest.raises(Replaced):
        store.get_range_of("a.tar", 10, 20, info.etag)
    for read in (store.get, lambda key: store.download(key, tmp_path / "copy")):
        versions[:] = [before, after]
        with pytest.raises(StoreUnavailable, match=r"a\.tar: was replaced while it was read"):
            read("a.tar")
    assert list(tmp_path.iterdir()) == []


def test_without_a_version_the_size_tells_another_file(serve: Callable[[Answer], Store]) -> None:
    sizes = [len(CONTENT), len(CONTENT) + 1]
    store = serve(
        lambda handler: give(
            handler,
            version={},
            says=f"bytes {handler.headers['Range'].removeprefix('bytes=')}/{sizes.pop(0)}",
        )
    )
    info = store.head("a.tar")
    assert info is not None
    with pytest.raises(Replaced):
        store.get_range_of("a.tar", 10, 20, info.etag)


def test_a_connection_that_stalls_is_left(
    serve: Callable[[Answer], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 1.0)
    left = threading.Event()
    asked: list[str] = []

    def stall_once(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        if len(asked) > 1:
            give(handler)
            return
        give(handler, cut=3)
        left.wait(240)

    store = serve(stall_once)
    try:
        with pytest.raises(StoreUnavailable, match=r"a\.tar: the server does not answer \(timed out\)"):
            store.get_range("a.tar", 0, 1000)
        assert store.get_range("a.tar", 0, 1000) == CONTENT[:1000], "who asks again gets it by another one"
    finally:
        left.set()


def test_a_server_without_ranges_is_refused(serve: Callable[[Answer], Store]) -> None:
    store = serve(lambda handler: give(handler, ranges=False))
    with pytest.raises(StoreError, match="ignores ranged reads"):
        store.head("a.tar")
    with pytest.raises(StoreError, match="ignores ranged reads"):
        store.get_range("a.tar", 10, 10)


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (403, Forbidden), (500, StoreUnavailable), (429, StoreUnavailable), (400, StoreError)],
)
def test_answers_mean_what_they_mean(
    serve: Callable[[Answer], Store], status: int, error: type[Exception]
) -> None:
    def refuse(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.end_headers()

    store = serve(refuse)
    with pytest.raises(error, match=r"data/a\.tar: "):
        store.get_range("a.tar", 0, 10)
    if status == 404:
        assert store.head("a.tar") is None


def test_a_file_that_is_read_whole_has_a_bound(
    serve: Callable[[Answer], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/whole/file", CONTENT)
    for store in (serve(give), open_location("memory://bucket/whole", ACCESS)):
        assert store.get("file")[0] == CONTENT
        with monkeypatch.context() as patch:
            patch.setattr(read_only, "BOUNDS", Bounds(object_bytes=len(CONTENT) - 1))
            with pytest.raises(UserDataError, match="the most that is read whole"):
                store.get("file")


def test_a_range_is_no_longer_than_was_asked_for(serve: Callable[[Answer], Store]) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-9/10")
        handler.end_headers()
        handler.wfile.write(b"x" * 1000)

    assert serve(answer).get_range("file", 0, 10) == b"x" * 10


def test_a_server_that_is_not_there_may_come_back() -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        open_location("http://127.0.0.1:9/data", ACCESS).head("a.tar")


def test_whatever_fsspec_knows_is_read(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/data/a.tar", CONTENT)
    store = open_location("memory://bucket/data", ACCESS)
    info = store.head("a.tar")
    assert info is not None
    assert info.size == len(CONTENT)
    before = info.etag
    assert store.get_range("a.tar", 300, 1000) == CONTENT[300:1300]
    assert store.get_range("a.tar", len(CONTENT) - 5, 1000) == CONTENT[-5:]
    assert store.download("a.tar", tmp_path / "a") == hashlib.sha256(CONTENT).hexdigest()
    assert store.head("b.tar") is None
    with pytest.raises(NotFound, match=r"data/b\.tar: no such file"):
        store.get_range("b.tar", 0, 10)
    files.pipe_file("/bucket/data/a.tar", CONTENT)
    replaced = store.head("a.tar")
    assert replaced is not None
    assert replaced.etag != before


def test_a_scheme_without_its_package_names_it() -> None:
    with pytest.raises(ConfigurationError, match=r"gs://bucket/data: .*gcsfs.*add the package"):
        open_location("gs://bucket/data", ACCESS)
    with pytest.raises(ConfigurationError, match="nowhere"):
        open_location("nowhere://bucket/data", ACCESS)


@pytest.mark.parametrize("uri", ["https://server/chains", "memory://bucket/chains"])
def test_nothing_is_kept_where_it_can_only_be_read(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown kind of store"):
        open_store(ResolvedStore(uri=uri))
    with pytest.raises(ConfigurationError, match="nothing written"):
        open_location(uri, ACCESS).put("a", b"")
