"""What only a store in S3 has to stand: wrong keys, missing buckets, servers that go away, answers that get lost."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from modelchain.errors import ConfigurationError, DiskFullError, ModelChainError
from modelchain.resolved import ResolvedStore
from modelchain.store import (
    ConflictError,
    Forbidden,
    MissingBucket,
    NotFound,
    Store,
    StoreError,
    StoreUnavailable,
    open_store,
    s3,
)
from modelchain.store.s3 import S3Store
from modelchain.store.s3_answers import NotS3Error
from modelchain.store.s3_clients import SharedClients, Timeouts
from modelchain.store.s3_errors import explain
from tests.modelchain.store.wire import Wire
from tests.seaweedfs import BUCKET, READER_ACCESS_KEY, READER_SECRET_KEY, SECRET_KEY, SeaweedFS

MEBIBYTE = 1 << 20


@pytest.fixture
def store(s3_store: Store) -> S3Store:
    assert isinstance(s3_store, S3Store)
    return s3_store


@pytest.fixture
def access(seaweedfs: SeaweedFS) -> ResolvedStore:
    """An empty prefix."""
    return seaweedfs.access(f"tests/{secrets.token_hex(6)}")


@pytest.fixture
def wire(seaweedfs: SeaweedFS) -> Iterator[Wire]:
    with Wire(int(seaweedfs.endpoint_url.rpartition(":")[2])) as wire:
        yield wire


def over(wire: Wire, access: ResolvedStore, **options: Any) -> S3Store:
    """The store at the other end of the wire."""
    return S3Store(access.uri, access.model_copy(update={"endpoint_url": wire.url}), **options)


def answer_with(store: S3Store, operation: str, status: int, code: str, times: int) -> list[int]:
    """Let the next requests of a kind be answered with an error, unsent. The list grows with each."""
    answered: list[int] = []
    body = f"<Error><Code>{code}</Code><Message>as asked</Message></Error>".encode()

    def answer(request: Any, **_: Any) -> Any:
        if len(answered) == times:
            return None
        answered.append(status)
        response: Any = AWSResponse(request.url, status, HTTPHeaders(), None)
        response._content = body
        return response

    store._connection.client().meta.events.register(f"before-send.s3.{operation}", answer)
    return answered


def every_call(store: Store, path: Path) -> dict[str, Callable[[], object]]:
    """A call of each method, by its name."""
    path.write_bytes(b"x")
    return {
        "get": lambda: store.get("key"),
        "find": lambda: store.find("key"),
        "get_range": lambda: store.get_range("key", 0, 1),
        "head": lambda: store.head("key"),
        "list": lambda: list(store.list("")),
        "put": lambda: store.put("key", b"x"),
        "put if absent": lambda: store.put("key", b"x", if_absent=True),
        "put if match": lambda: store.put("key", b"x", if_match='"x"'),
        "upload": lambda: store.upload("key", path),
        "download": lambda: store.download("key", path.with_name("copy")),
        "delete": lambda: store.delete(["key"]),
        "abort": lambda: store.abort_stale_uploads("", 0),
    }


class TestWhatAUserGotWrong:
    def test_a_missing_bucket_is_named_by_every_call(self, seaweedfs: SeaweedFS, tmp_path: Path) -> None:
        store = open_store(seaweedfs.access("x", bucket="no-such-bucket"))
        for name, call in every_call(store, tmp_path / "file").items():
            with pytest.raises(MissingBucket) as caught:
                call()
            message = str(caught.value)
            assert "bucket 'no-such-bucket' does not exist" in message, name
            assert seaweedfs.endpoint_url in message
            assert "create it" in message
            assert "\n" not in message

    @pytest.mark.parametrize(
        ("key", "secret", "says"),
        [
            ("wrong-access-key", "wrong-secret", "refuses the credentials"),
            ("test-access-key", "wrong-secret", "refuses the credentials"),
            (READER_ACCESS_KEY, READER_SECRET_KEY, "access denied"),
        ],
    )
    def test_refused_credentials_are_forbidden_and_never_shown(
        self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch, key: str, secret: str, says: str
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        store = open_store(access)
        with pytest.raises(Forbidden) as caught:
            store.put("key", b"x")
        message = str(caught.value)
        assert message.startswith(f"{access.uri}/key: ")
        assert says in message
        for word in (key, secret, SECRET_KEY):
            assert word not in message

    def test_an_object_that_may_not_be_seen_is_not_absent(
        self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
        with pytest.raises(Forbidden):
            open_store(access).head("key")

    def test_without_credentials_the_message_says_how_to_give_them(
        self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(Forbidden, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            open_store(access).get("key")

    def test_an_unknown_profile_is_told(self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
        with pytest.raises(Forbidden, match="AWS_PROFILE"):
            open_store(access).get("key")

    @pytest.mark.usefixtures("seaweedfs")
    def test_nobody_at_the_endpoint_is_told_soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(
            "AWS_ENDPOINT_URL", "http://user:hidden@127.0.0.1:9"
        )  # as the chain may not have it
        access = ResolvedStore(uri=f"s3://{BUCKET}/x")
        began = time.monotonic()
        with pytest.raises(
            StoreUnavailable, match=r"127\.0\.0\.1:9 does not answer.*is it running"
        ) as caught:
            open_store(access, patience_seconds=1).get("key")
        assert "hidden" not in str(caught.value)
        assert time.monotonic() - began < 10

    @pytest.mark.parametrize("endpoint", ["minio:9000", "no url", "http://"])
    @pytest.mark.usefixtures("seaweedfs")
    def test_an_endpoint_that_is_no_url_is_told(self, endpoint: str) -> None:
        with pytest.raises(ConfigurationError, match="is not a URL such as"):
            open_store(ResolvedStore(uri="s3://b/x", endpoint_url=endpoint)).get("key")

    def test_a_certificate_file_that_is_missing_is_named(self, access: ResolvedStore) -> None:
        with pytest.raises(ConfigurationError, match=r"/no/ca\.crt: no such file"):
            open_store(access.model_copy(update={"ca_bundle": "/no/ca.crt"})).get("key")

    def test_credentials_in_a_uri_are_refused_and_not_repeated(self) -> None:
        for uri in ("s3://key:hidden@bucket/x", "s3://", "s3:///x"):
            with pytest.raises(ConfigurationError, match=r"s3://(bucket/prefix|\.\.\. holds)") as caught:
                open_store(ResolvedStore(uri=uri))
            assert "hidden" not in str(caught.value)

    def test_a_bucket_name_that_can_not_be_is_told(self, seaweedfs: SeaweedFS) -> None:
        with pytest.raises(ConfigurationError, match="address can't be used"):
            open_store(seaweedfs.access("x", bucket="no bucket")).get("key")


class TestAServerThatGoesAway:
    @pytest.mark.slow
    def test_everything_under_way_survives_a_restart(
        self, seaweedfs: SeaweedFS, access: ResolvedStore, tmp_path: Path
    ) -> None:
        store = S3Store(access.uri, access, patience_seconds=60, part_bytes=5 * MEBIBYTE)
        data = random.Random(1).randbytes(12 * MEBIBYTE)
        (tmp_path / "file").write_bytes(data)
        store.upload("large", tmp_path / "file")
        etag = store.put("counter", b"0")
        over_now = threading.Event()

        def count() -> int:
            nonlocal etag
            number = 0
            while not over_now.is_set():
                number += 1
                etag = store.put(
                    "counter", b"%d" % number, if_match=etag
                )  # a lost answer would be a conflict
            return number

        def read() -> int:
            times = 0
            while not over_now.is_set():
                start = random.randrange(len(data))
                assert store.get_range("large", start, 70_000) == data[start : start + 70_000]
                times += 1
            return times

        def move() -> int:
            times = 0
            while not over_now.is_set():
                store.upload(f"copy-{times}", tmp_path / "file")
                assert store.download(f"copy-{times}", tmp_path / "back") == hashlib.sha256(data).hexdigest()
                times += 1
            return times

        with ThreadPoolExecutor(3) as threads:
            running = [threads.submit(task) for task in (count, read, move)]
            try:
                time.sleep(1.0)
                seaweedfs.kill()
                time.sleep(1.0)
            finally:
                seaweedfs.start()
                time.sleep(1.0)
                over_now.set()
            done = [task.result(timeout=120) for task in running]
        assert all(times > 0 for times in done)
        assert store.get("counter")[0] == b"%d" % done[0]

    @pytest.mark.slow
    def test_a_server_that_stays_away_is_told_after_the_patience(
        self, seaweedfs: SeaweedFS, access: ResolvedStore
    ) -> None:
        store = S3Store(access.uri, access, patience_seconds=2)
        store.put("key", b"x")
        seaweedfs.kill()
        try:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="does not answer"):
                store.get("key")
            assert 1 < time.monotonic() - began < 20
        finally:
            seaweedfs.start()
        assert store.get("key")[0] == b"x"

    def test_a_busy_server_is_asked_again(self, store: S3Store) -> None:
        store.put("key", b"x")
        answered = answer_with(store, "GetObject", 503, "SlowDown", times=4)
        assert store.get("key")[0] == b"x"
        assert len(answered) == 4


class TestAnswersThatGetLost:
    def test_a_body_that_breaks_off_is_continued_where_it_ended(
        self, wire: Wire, access: ResolvedStore, tmp_path: Path
    ) -> None:
        store = over(wire, access, part_bytes=5 * MEBIBYTE)
        data = random.Random(2).randbytes(6 * MEBIBYTE)
        store.put("object", data)
        wire.cut_answers(300_000, 2_000_000, 0, 5)
        assert store.get("object")[0] == data
        wire.cut_answers(2_500_000)
        assert store.get_range("object", 1000, 3 * MEBIBYTE) == data[1000 : 1000 + 3 * MEBIBYTE]
        wire.cut_answers(1_000_000, 1_000_000)
        assert store.download("object", tmp_path / "copy") == hashlib.sha256(data).hexdigest()
        assert wire.cut == 7

    def test_a_connection_that_stalls_is_left_and_the_body_continued_on_another(
        self, wire: Wire, access: ResolvedStore
    ) -> None:
        store = over(wire, access, clients=SharedClients(timeouts=Timeouts(read_seconds=2)))
        data = random.Random(4).randbytes(MEBIBYTE)
        store.put("object", data)
        wire.stall_answers(300_000)
        assert store.get_range("object", 1000, 700_000) == data[1000:701_000]
        assert wire.cut == 1

    def test_a_body_that_always_breaks_off_at_the_same_place_is_given_up(
        self, wire: Wire, access: ResolvedStore
    ) -> None:
        store = over(wire, access, patience_seconds=1)
        store.put("object", b"x" * 1000)
        wire.cut_answers(*[0] * 100)
        with pytest.raises(StoreUnavailable):
            store.get("object")

    def test_a_writer_that_won_is_not_told_that_it_lost(self, wire: Wire, access: ResolvedStore) -> None:
        store = over(wire, access)
        wire.cut_answers(0)
        etag = store.put("manifest", b"mine", if_absent=True)
        assert store.get("manifest") == (b"mine", etag)
        wire.cut_answers(0, 0)
        again = store.put("manifest", b"mine, renewed", if_match=etag)
        assert store.get("manifest") == (b"mine, renewed", again)
        assert wire.cut == 3

    def test_a_writer_that_lost_is_told_so_even_if_the_answer_was_lost(
        self, wire: Wire, access: ResolvedStore
    ) -> None:
        store = over(wire, access)
        store.put("manifest", b"theirs", if_absent=True)
        wire.cut_answers(0)
        with pytest.raises(ConflictError):
            store.put("manifest", b"mine", if_absent=True)
        assert wire.cut == 1
        assert store.get("manifest")[0] == b"theirs"

    def test_of_writers_whose_answers_get_lost_exactly_one_wins(
        self, wire: Wire, access: ResolvedStore
    ) -> None:
        store = over(wire, access)
        store.check_conditional_writes()
        wire.cut_answers(0, 0, 0)
        wins: list[int] = []

        def write(number: int) -> None:
            try:
                store.put("manifest", b"attempt %d" % number, if_absent=True)
            except ConflictError:
                return
            wins.append(number)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write, range(4)))
        assert wire.cut == 3
        assert len(wins) == 1
        assert store.get("manifest")[0] == b"attempt %d" % wins[0]

    def test_a_writer_killed_in_the_middle_of_a_request_leaves_nothing_or_all(
        self, wire: Wire, access: ResolvedStore, tmp_path: Path
    ) -> None:
        """SeaweedFS makes an empty object of a request that ends before its body; an empty manifest would be stuck."""
        store = over(wire, access, patience_seconds=0)
        data = random.Random(4).randbytes(200_000)
        (tmp_path / "file").write_bytes(data)
        writes: tuple[Callable[[str], object], ...] = (
            lambda key: store.put(key, data, if_absent=True),
            lambda key: store.upload(key, tmp_path / "file"),
        )
        for number, write in enumerate(writes):
            for cut in (0, 200, 2000, 50_000, 150_000):  # 0: all headers and nothing of the body
                key = f"object-{number}-{cut}"
                if cut:
                    wire.cut_requests(cut)
                else:
                    wire.cut_bodies(1)
                with pytest.raises(StoreUnavailable):
                    write(key)
                time.sleep(0.2)
                assert store.head(key) is None
                write(key)
                assert store.get(key)[0] == data

    def test_a_write_that_meets_another_at_the_same_moment_asks_again(self, store: S3Store) -> None:
        answered = answer_with(store, "PutObject", 409, "ConditionalRequestConflict", times=2)
        store.put("manifest", b"mine", if_absent=True)
        assert len(answered) == 2
        answer_with(store, "PutObject", 409, "ConditionalRequestConflict", times=1000)
        with pytest.raises(ConflictError):
            store.put("other", b"mine", if_absent=True)


class TestConditionalWrites:
    def test_they_hold_for_multipart_uploads_too(self, seaweedfs: SeaweedFS, store: S3Store) -> None:
        """A fact about the server, for whoever wants to commit a large object: files here are never conditional."""
        client, key = seaweedfs.client(), f"{store._prefix}large"

        def complete(body: bytes) -> None:
            upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
            part = client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=body)
            client.complete_multipart_upload(
                Bucket=BUCKET,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
                IfNoneMatch="*",
            )

        complete(b"first")
        with pytest.raises(ClientError, match="PreconditionFailed"):
            complete(b"second")
        assert store.get("large")[0] == b"first"

    def test_a_server_that_ignores_them_is_found_out(
        self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3, "_conditional_writes", {})
        store = S3Store(access.uri, access)
        ignore_conditions(store)
        assert not store.check_conditional_writes()
        assert list(store.list("")) == []

    def test_a_server_that_does_not_know_them_is_found_out(
        self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3, "_conditional_writes", {})
        store = S3Store(access.uri, access)
        answer_with(store, "PutObject", 501, "NotImplemented", times=1)
        assert not store.check_conditional_writes()

    def test_with_the_risk_accepted_the_store_looks_before_it_writes(
        self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3, "_conditional_writes", {})
        store = S3Store(access.uri, access.model_copy(update={"allow_unconditional_writes": True}))
        ignore_conditions(store)
        etag = store.put("manifest", b"first", if_absent=True)
        with pytest.raises(ConflictError):
            store.put("manifest", b"second", if_absent=True)
        assert store.put("manifest", b"third", if_match=etag) != etag
        with pytest.raises(ConflictError):
            store.put("manifest", b"fourth", if_match=etag)
        assert store.get("manifest")[0] == b"third"

    def test_the_server_is_asked_once(self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3, "_conditional_writes", {})
        assert open_store(access).check_conditional_writes()
        other = S3Store(access.uri, access)
        answered = answer_with(other, "PutObject", 501, "NotImplemented", times=1)
        assert other.check_conditional_writes()
        assert answered == []

    def test_a_server_that_is_away_is_not_taken_for_one_that_ignores_them(
        self, access: ResolvedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3, "_conditional_writes", {})
        store = S3Store(access.uri, access, patience_seconds=0)
        answer_with(store, "PutObject", 503, "SlowDown", times=1000)
        with pytest.raises(StoreUnavailable):
            store.check_conditional_writes()
        assert open_store(access).check_conditional_writes()


class TestFiles:
    def test_a_file_goes_up_in_parts(
        self, seaweedfs: SeaweedFS, access: ResolvedStore, tmp_path: Path
    ) -> None:
        store = S3Store(access.uri, access, part_bytes=5 * MEBIBYTE)
        (tmp_path / "file").write_bytes(random.Random(3).randbytes(11 * MEBIBYTE))
        store.upload("large", tmp_path / "file")
        head = store.head("large")
        assert head is not None
        assert head.etag.strip('"').endswith("-3")  # S3 names the number of parts in the etag
        unfinished = seaweedfs.client().list_multipart_uploads(Bucket=BUCKET, Prefix=store._prefix)
        assert unfinished.get("Uploads", []) == []

    def test_a_file_replaced_during_its_download_comes_down_whole(
        self, access: ResolvedStore, tmp_path: Path
    ) -> None:
        store = S3Store(access.uri, access, part_bytes=100_000)
        other = S3Store(access.uri, access)
        store.put("object", b"1" * 1_000_000)
        lock = threading.Lock()
        asked = 0

        def replace(**_: Any) -> None:
            nonlocal asked
            with lock:
                asked += 1
                if asked == 5:
                    other.put("object", b"2" * 900_000)

        store._connection.client().meta.events.register("before-send.s3.GetObject", replace)
        store.download("object", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"2" * 900_000

    def test_a_file_that_vanishes_during_its_download_leaves_nothing(
        self, access: ResolvedStore, tmp_path: Path
    ) -> None:
        store = S3Store(access.uri, access, part_bytes=100_000)
        other = S3Store(access.uri, access)
        store.put("object", b"1" * 4_000_000)
        gone = threading.Event()

        def vanish(**_: Any) -> None:
            if not gone.is_set():
                gone.set()
                other.delete(["object"])

        store._connection.client().meta.events.register("after-call.s3.GetObject", vanish)
        with pytest.raises(NotFound, match="object"):
            store.download("object", tmp_path / "down" / "copy")
        assert list((tmp_path / "down").iterdir()) == []

    def test_unfinished_uploads_are_swept_below_the_prefix_and_by_age(
        self, seaweedfs: SeaweedFS, store: S3Store
    ) -> None:
        client = seaweedfs.client()

        def uploads() -> list[str | None]:
            found = client.list_multipart_uploads(Bucket=BUCKET, Prefix=store._prefix).get("Uploads", [])
            return [upload.get("Key", "").removeprefix(store._prefix) for upload in found]

        for key in ("stages/a/file", "stages/b/file"):
            client.create_multipart_upload(Bucket=BUCKET, Key=store._prefix + key)
        assert store.abort_stale_uploads("stages/", 3600) == 0
        time.sleep(1.1)
        assert store.abort_stale_uploads("stages/a/", 1) == 1
        assert uploads() == ["stages/b/file"]
        assert store.abort_stale_uploads("", 1) == 1
        assert uploads() == []

    @pytest.mark.slow
    def test_more_objects_than_one_page_are_listed_and_deleted(self, store: S3Store) -> None:
        names = [f"many/{number:05d}" for number in range(1010)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: store.put(name, b""), names))
        assert [info.key for info in store.list("many/")] == names
        store.delete(names)
        assert list(store.list("")) == []

    def test_a_server_without_multi_delete_deletes_one_by_one(self, store: S3Store) -> None:
        store.put("a", b"")
        store.put("b", b"")
        answered = answer_with(store, "DeleteObjects", 501, "NotImplemented", times=1)
        store.delete(["a", "b"])
        assert len(answered) == 1
        assert list(store.list("")) == []


def test_a_forked_process_makes_connections_of_its_own(store: S3Store) -> None:
    store.put("key", b"from the parent")
    child = os.fork()
    if child == 0:
        try:
            os._exit(
                0 if store.get("key")[0] == b"from the parent" and len(store._connection._clients) == 2 else 1
            )
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(store._connection._clients) == 1


def client_error(status: int, code: str, message: str = "") -> ClientError:
    answer = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, "GetObject")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (client_error(404, "NoSuchKey"), NotFound, "no such object"),
        (client_error(404, "NoSuchBucket"), MissingBucket, "'bucket' does not exist"),
        (client_error(412, "PreconditionFailed"), ConflictError, "exists already"),
        (client_error(403, "AccessDenied"), Forbidden, "s3:ListBucket"),
        (client_error(403, "403"), Forbidden, "access denied"),
        (client_error(400, "ExpiredToken"), Forbidden, "refuses the credentials"),
        (client_error(403, "RequestTimeTooSkewed"), Forbidden, "clock is wrong"),
        (client_error(301, "PermanentRedirect"), ConfigurationError, "another region"),
        (client_error(507, "XMinioStorageFull"), DiskFullError, "is full"),
        (client_error(503, "SlowDown"), StoreUnavailable, "failing"),
        (client_error(500, "InternalError"), StoreUnavailable, "failing"),
        (client_error(400, "RequestTimeout"), StoreUnavailable, "failing"),
        (client_error(501, "NotImplemented", "not\nhere"), StoreError, "answers NotImplemented: not here"),
        (boto.NoCredentialsError(), Forbidden, "no usable credentials"),
        (
            boto.SSLError(endpoint_url="https://x", error=OSError("EOF occurred")),
            StoreUnavailable,
            "does not answer",
        ),
        (boto.EndpointConnectionError(endpoint_url="https://x"), StoreUnavailable, "can't connect"),
        (boto.ConnectionClosedError(endpoint_url="https://x"), StoreUnavailable, "does not answer"),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), StoreUnavailable, "broke off"),
        (boto.PaginationError(message="the same token twice"), NotS3Error, "is it an S3 server"),
        (ResponseParserError("no XML"), NotS3Error, "is it an S3 server"),
        (KeyError("ETag"), NotS3Error, "is it an S3 server"),
        (RecursionError("too deep"), NotS3Error, "is it an S3 server"),
        (boto.ReadTimeoutError(endpoint_url="https://x"), StoreUnavailable, "no answer in time"),
    ],
)
def test_each_error_has_its_kind_and_one_line(
    error: Exception, kind: type[ModelChainError], says: str
) -> None:
    shown = explain(error, "s3://bucket/key", "bucket", "https://me:hidden@host")
    assert shown is not None
    assert type(shown) is kind
    message = str(shown)
    assert message.startswith("s3://bucket/key: ")
    assert says in message
    assert "\n" not in message
    assert "hidden" not in message


def ignore_conditions(store: S3Store) -> None:
    """Make a server out of ours that has never heard of conditional writes."""

    def strip(request: Any, **_: Any) -> None:
        for header in ("If-None-Match", "If-Match"):
            del request.headers[header]

    store._connection.client().meta.events.register("before-sign.s3.PutObject", strip)
