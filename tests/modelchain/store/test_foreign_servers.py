"""Endpoints that are no S3 server, or one with habits of its own: each mistake is said once, and nothing is retried."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from urllib3.util import connection

from modelchain.errors import ConfigurationError, UserDataError, is_permanent
from modelchain.resolved import ResolvedStore
from modelchain.store import (
    Bounds,
    ConflictError,
    Credentials,
    Forbidden,
    Store,
    StoreError,
    StoreUnavailable,
    open_store,
)
from modelchain.store.base import BOUNDS
from modelchain.store.s3_answers import NotS3Error
from modelchain.store.s3_transport import TimeLimit, by_turns
from tests.modelchain.store.dripping_server import dripping
from tests.modelchain.store.odd_server import (
    Answer,
    Respond,
    WithoutETags,
    endless_listing,
    json_api,
    make_certificate,
    page,
    redirect,
    serve,
)
from tests.modelchain.store.test_s3 import every_call
from tests.processes import PATIENCE_SECONDS

KEYS = Credentials("key", "secret")


def store_at(
    endpoint: str,
    *,
    ca_bundle: Path | None = None,
    credentials: Credentials | None = KEYS,
    bounds: Bounds = BOUNDS,
) -> Store:
    access = ResolvedStore(
        uri="s3://bucket/chains", endpoint_url=endpoint, ca_bundle=ca_bundle and str(ca_bundle)
    )
    return open_store(access, patience_seconds=60.0, credentials=credentials, bounds=bounds)


def calls(store: Store, file: Path) -> dict[str, Callable[[], object]]:
    return {**every_call(store, file), "probe": store.check_conditional_writes}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_named_by_every_call_and_not_followed(status: int, tmp_path: Path) -> None:
    with serve(redirect(status)) as endpoint:
        for name, call in calls(store_at(endpoint), tmp_path / "file").items():
            began = time.monotonic()
            with pytest.raises(NotS3Error) as caught:
                call()
            assert is_permanent(caught.value.exit_code), name
            assert "the endpoint redirects" in str(caught.value), name
            assert "https://elsewhere.example:9000" in str(caught.value), name
            assert "hidden" not in str(caught.value), name
            assert "elsewhere" not in caught.value.public, name
            assert time.monotonic() - began < 30.0, name


def test_a_redirect_that_urllib3_can_not_read_is_permanent_too() -> None:
    with serve(redirect(303)) as endpoint, pytest.raises(NotS3Error, match="is it an S3 server"):
        store_at(endpoint).get("key")


@pytest.mark.parametrize("respond", [page, json_api], ids=["page", "json"])
@pytest.mark.parametrize("call", ["list", "abort"])
def test_something_else_is_not_taken_for_an_empty_listing(
    respond: Respond, call: str, tmp_path: Path
) -> None:
    with serve(respond) as endpoint, pytest.raises(NotS3Error, match="no S3 server"):
        calls(store_at(endpoint), tmp_path / "file")[call]()


@pytest.mark.parametrize(
    "call",
    ["get", "find", "get_range", "head", "put", "put if absent", "upload", "download", "delete", "probe"],
)
def test_a_page_is_not_taken_for_an_object(call: str, tmp_path: Path) -> None:
    with serve(page) as endpoint, pytest.raises(NotS3Error, match="no S3 server"):
        calls(store_at(endpoint), tmp_path / "file")[call]()


@pytest.mark.parametrize("call", ["get", "find", "head", "list", "put", "upload", "probe"])
def test_a_web_servers_404_is_not_taken_for_an_empty_store(call: str, tmp_path: Path) -> None:
    missing = Answer(404, {"Content-Type": "text/html"}, b"<html><title>404 Not Found</title></html>")
    with serve(lambda *_: missing) as endpoint, pytest.raises(NotS3Error, match="answers with a page"):
        calls(store_at(endpoint), tmp_path / "file")[call]()


@pytest.mark.parametrize("call", ["list", "put", "upload", "probe"])
def test_a_404_of_no_words_is_no_missing_object_where_none_is_asked_for(call: str, tmp_path: Path) -> None:
    with serve(lambda *_: Answer(404)) as endpoint:
        with pytest.raises(NotS3Error, match="answers 404 where S3 lists and writes"):
            calls(store_at(endpoint), tmp_path / "file")[call]()
        assert store_at(endpoint).find("key") is None


def test_a_region_that_an_answer_names_is_not_told_where_servers_have_no_word() -> None:
    told = Answer(
        301, {"x-amz-bucket-region": "eu- secret"}, b"<Error><Code>PermanentRedirect</Code></Error>"
    )
    with serve(lambda *_: told) as endpoint, pytest.raises(ConfigurationError, match="region") as caught:
        store_at(endpoint).get("key")
    assert "secret" not in caught.value.public


def test_a_listing_that_never_goes_on_is_an_error(tmp_path: Path) -> None:
    with serve(endless_listing) as endpoint, pytest.raises(NotS3Error, match="can't be understood"):
        list(store_at(endpoint).list(""))


def test_another_range_than_was_asked_for_is_refused() -> None:
    answer = Answer(206, {"Content-Range": "bytes 0-9/100", "ETag": '"e"'}, b"x" * 10)
    with (
        serve(lambda *_: answer) as endpoint,
        pytest.raises(StoreError, match=r"chains/key: bytes from 5 on were asked for, .*bytes 0-9/100"),
    ):
        store_at(endpoint).get_range("key", 5, 10)


def test_a_range_that_breaks_off_without_a_length_is_continued() -> None:
    content, asked = bytes(range(100)), 0

    def cut_once() -> Iterator[bytes]:
        nonlocal asked
        asked += 1
        yield content[10:17] if asked == 1 else content[17:30]

    def respond(method: str, path: str, body: bytes) -> Answer:
        first = 10 if asked == 0 else 17
        return Answer(206, {"Content-Range": f"bytes {first}-29/100", "ETag": '"e"'}, cut_once())

    with serve(respond) as endpoint:
        assert store_at(endpoint).get_range("key", 10, 20) == content[10:30]
    assert asked == 2


def test_an_answer_that_is_wider_than_the_range_is_cut() -> None:
    content = bytes(range(256)) * 8192  # more than is read at a time
    answer = Answer(
        206, {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}", "ETag": '"e"'}, content
    )
    with serve(lambda *_: answer) as endpoint:
        assert store_at(endpoint).get_range("key", 0, 100) == content[:100]


class TestAnswersThatFillTheMemory:
    """Each is finite, so that a client without a bound reads it to its end, and fails the test."""

    @pytest.mark.parametrize("headers", [{"ETag": '"x"'}, {}], ids=["with an etag", "without"])
    @pytest.mark.parametrize("call", ["get", "find"])
    def test_an_object_that_is_read_whole(self, headers: dict[str, str], call: str) -> None:
        answer = Answer(200, headers, itertools.repeat(b"x" * 65536, 64))
        with serve(lambda *_: answer) as endpoint:
            store = store_at(endpoint, bounds=Bounds(object_bytes=1 << 20))
            with pytest.raises(UserDataError, match=r"chains/key: holds more than 1,048,576 bytes"):
                getattr(store, call)("key")

    def test_a_range_is_no_longer_than_was_asked_for(self) -> None:
        sent = 0

        def parts() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(1024):
                sent += 1 << 18
                yield b"x" * (1 << 18)

        with serve(lambda *_: Answer(200, {}, parts())) as endpoint:
            assert store_at(endpoint).get_range("key", 0, 10) == b"x" * 10
        assert sent < 1 << 28

    @pytest.mark.parametrize(
        ("status", "call"),
        [(404, "get"), (500, "get"), *itertools.product((200, 404, 500), ("list", "put", "delete", "abort"))],
    )
    def test_an_answer_that_is_no_object(self, status: int, call: str, tmp_path: Path) -> None:
        def respond(method: str, path: str, body: bytes) -> Answer:
            return Answer(status, {}, [b"<Error>", *[b" " * 65536] * 256, b"<Code>Other</Code></Error>"])

        with serve(respond) as endpoint, pytest.raises(NotS3Error, match="more than 4 MiB"):
            calls(store_at(endpoint), tmp_path / "file")[call]()

    @pytest.mark.parametrize("status", [200, 404])
    @pytest.mark.parametrize(
        "xml",
        [
            b"<ListBucketResult>" + b"<a/>" * 100_001 + b"</ListBucketResult>",
            b'<!DOCTYPE x [<!ENTITY a "b">]><ListBucketResult>&a;</ListBucketResult>',
            '<?xml version="1.0" encoding="UTF-16"?><ListBucketResult/>'.encode("utf-16"),
        ],
        ids=["elements", "entities", "UTF-16"],
    )
    def test_xml_that_a_parser_makes_much_of(self, status: int, xml: bytes) -> None:
        with serve(lambda *_: Answer(status, {}, xml)) as endpoint, pytest.raises(NotS3Error, match="XML as"):
            list(store_at(endpoint).list(""))

    @pytest.mark.parametrize("listed", [0, 1, 1000], ids=["empty pages", "one a page", "full pages"])
    def test_a_listing_without_end(self, listed: int) -> None:
        pages = itertools.count()

        def respond(method: str, path: str, body: bytes) -> Answer:
            if (page := next(pages)) > 200:
                return Answer(403)
            entries = "".join(
                f"<Contents><Key>chains/{page}-{number}</Key><Size>1</Size>"
                "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
                for number in range(listed)
            )
            more = f"<NextContinuationToken>{page}</NextContinuationToken><IsTruncated>true</IsTruncated>"
            return Answer(200, {}, f"<ListBucketResult>{more}{entries}</ListBucketResult>".encode())

        with serve(respond) as endpoint:
            store = store_at(endpoint, bounds=Bounds(listed=100))
            with pytest.raises(UserDataError, match="more than 100 objects are listed"):
                list(store.list(""))


OK = b"HTTP/1.1 200 OK\r\nETag: x\r\n"


class TestTimeLimit:
    """A server that drips keeps every time-out per read from passing."""

    @pytest.mark.parametrize(
        ("call", "beginning"),
        [
            ("get", b""),
            ("get", b"HTTP/1.1 2"),
            ("get", b"HTTP/1.1 200 OK\r\nETag: "),
            ("get", OK + b"Content-Length: 100\r\n\r\nx"),
            ("get", OK + b"\r\nlooks whole once the connection is closed"),
            ("list", OK + b"\r\n<ListBucketResult>"),
            ("put", b"HTTP/1.1 100 "),
        ],
    )
    @pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
    def test_what_drips_is_ended(self, call: str, beginning: bytes, *, tls: bool, tmp_path: Path) -> None:
        certificate = make_certificate(tmp_path, "localhost") if tls else None
        limit = TimeLimit()
        with dripping(beginning, certificate) as (endpoint, begun), ThreadPoolExecutor(1) as pool:
            store = store_at(endpoint, ca_bundle=certificate)
            future = pool.submit(limit.run, calls(store, tmp_path / "file")[call])
            assert begun.wait(PATIENCE_SECONDS)
            limit.cut()
            with pytest.raises(StoreUnavailable, match="not complete in time"):
                future.result(PATIENCE_SECONDS)

    def test_what_is_cut_while_it_connects_sends_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect = connection.create_connection

        def cut_meanwhile(*arguments: Any, **options: Any) -> socket.socket:
            limit.cut()
            return connect(*arguments, **options)

        limit = TimeLimit()
        with dripping(OK) as (endpoint, begun):
            store = store_at(endpoint)
            monkeypatch.setattr(connection, "create_connection", cut_meanwhile)
            with pytest.raises(StoreUnavailable):
                limit.run(store.get, "key")
            assert not begun.is_set()

    def test_a_function_that_is_done_takes_no_connection_from_another(self) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def parts() -> Iterator[bytes]:
            yield b"1"
            begun.set()
            go_on.wait(PATIENCE_SECONDS)
            yield b"2"

        def respond(method: str, path: str, body: bytes) -> Answer:
            return Answer(200, {}, b"first" if path.endswith("first") else parts())

        first, second = TimeLimit(), TimeLimit()
        with serve(respond) as endpoint, ThreadPoolExecutor(1) as pool:
            store = store_at(endpoint)
            assert first.run(store.get, "first")[0] == b"first"
            future = pool.submit(second.run, store.get, "second")
            assert begun.wait(PATIENCE_SECONDS)
            first.cut()
            go_on.set()
            assert future.result(PATIENCE_SECONDS)[0] == b"12"

    def test_no_request_begins_after_it(self) -> None:
        asked: list[str] = []

        def respond(method: str, path: str, body: bytes) -> Answer:
            asked.append(path)
            limit.cut()
            return Answer(200, {}, b"late")

        def read() -> None:
            with suppress(StoreUnavailable):
                store.get("one")
            store.get("two")

        limit = TimeLimit()
        with serve(respond) as endpoint, pytest.raises(StoreUnavailable):
            store = store_at(endpoint)
            limit.run(read)
        assert asked == ["/bucket/chains/one"]


@pytest.mark.parametrize("status", [200, 502])
def test_a_write_whose_answer_breaks_off_is_known_again_as_ones_own(status: int) -> None:
    written: dict[str, bytes] = {}

    def respond(method: str, path: str, body: bytes) -> Answer:
        if method != "PUT":
            return Answer(200, {"ETag": '"e"'}, written.get(path, b""))
        if path in written:
            return Answer(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
        written[path] = body
        return Answer(status, {"Transfer-Encoding": "chunked"}, [b"100\r\nhalf"])

    with serve(respond) as endpoint:
        assert store_at(endpoint).put("key", b"mine", if_absent=True) == '"e"'


def test_addresses_of_both_kinds_are_tried_by_turns() -> None:
    assert by_turns(["::1", "::2", "::3", "10.0.0.1"]) == ["::1", "10.0.0.1", "::2", "::3"]
    assert by_turns(["10.0.0.1"]) == ["10.0.0.1"]
    assert by_turns([]) == []


def test_a_condition_that_nobody_made_is_no_reason_to_ask_for_ever() -> None:
    answers = iter([Answer(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")] * 10)
    with serve(lambda *_: next(answers, Answer(200, {}, b"never"))) as endpoint, pytest.raises(ConflictError):
        store_at(endpoint).get("key")


def test_a_server_without_etags_works(tmp_path: Path) -> None:
    with serve(WithoutETags()) as endpoint:
        store = store_at(endpoint)
        etag = store.put("a/one", b"1")
        assert store.get("a/one") == (b"1", etag)
        assert store.put("a/one", b"2") != etag
        assert store.get("a/one")[0] == b"2"
        assert [info.key for info in store.list("a/")] == ["a/one"]
        found = store.head("a/one")
        assert found is not None
        assert found.etag
        store.download("a/one", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"2"
        assert not store.check_conditional_writes()


class TestCertificates:
    def test_one_of_another_host_names_both(self, tmp_path: Path) -> None:
        certificate = make_certificate(tmp_path, "minio.example")
        with (
            serve(WithoutETags(), certificate) as endpoint,
            pytest.raises(ConfigurationError, match="not for localhost") as caught,
        ):
            store_at(endpoint, ca_bundle=certificate).get("key")
        assert "minio.example" in str(caught.value)
        assert "minio.example" not in caught.value.public

    def test_an_expired_one_is_called_expired(self, tmp_path: Path) -> None:
        certificate = make_certificate(tmp_path, "localhost", expired=True)
        with (
            serve(WithoutETags(), certificate) as endpoint,
            pytest.raises(ConfigurationError, match="has expired"),
        ):
            store_at(endpoint, ca_bundle=certificate).get("key")

    def test_one_of_an_unknown_authority_asks_for_the_authority(self, tmp_path: Path) -> None:
        certificate = make_certificate(tmp_path, "localhost")
        with (
            serve(WithoutETags(), certificate) as endpoint,
            pytest.raises(ConfigurationError, match="give its authority"),
        ):
            store_at(endpoint).get("key")

    def test_a_port_without_tls_is_called_so(self) -> None:
        with (
            serve(WithoutETags()) as endpoint,
            pytest.raises(ConfigurationError, match="does not speak TLS"),
        ):
            store_at(endpoint.replace("http://", "https://")).get("key")


class TestKeys:
    @pytest.mark.parametrize("ending", ["\n", "\r\n", " ", "\x00"])
    def test_what_no_key_has_is_named_and_never_shown(self, ending: str) -> None:
        with pytest.raises(Forbidden, match="AWS_SECRET_ACCESS_KEY") as caught:
            store_at("http://localhost:1", credentials=Credentials("key", f"hidden{ending}")).get("key")
        assert is_permanent(caught.value.exit_code)
        assert "hidden" not in str(caught.value)

    def test_a_line_break_in_the_environment_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hidden\n")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(Forbidden, match="AWS_ACCESS_KEY_ID ends with a line break"):
            store_at("http://localhost:1", credentials=None).get("key")
