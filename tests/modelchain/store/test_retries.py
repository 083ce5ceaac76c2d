"""How often a request is sent to a server that fails: one place decides it, `Connection.call`."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelchain.resolved import ResolvedStore
from modelchain.store import Credentials, StoreUnavailable
from modelchain.store.s3 import S3Store
from tests.modelchain.store.odd_server import Answer, serve

PART = 5 << 20
FAILS = Answer(503, body=b"<Error><Code>InternalError</Code></Error>")


@contextmanager
def counted(
    respond: Callable[[str, str, int], Answer], *, patience_seconds: float
) -> Iterator[tuple[S3Store, Counter[str]]]:
    """A store whose server answers with `respond(method, path, how often it was asked that before)`."""
    asked: Counter[str] = Counter()
    lock = threading.Lock()

    def answer(method: str, path: str, _: bytes) -> Answer:
        what = f"{method} {path}"
        with lock:
            before = asked[what]
            asked[what] += 1
        return respond(method, path, before)

    with serve(answer) as url:
        access = ResolvedStore(uri="s3://bucket/prefix", endpoint_url=url)
        yield (
            S3Store(
                access.uri,
                access,
                patience_seconds=patience_seconds,
                part_bytes=PART,
                credentials=Credentials("id", "secret", None),
            ),
            asked,
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda store, _: store.get("key"),
        lambda store, _: store.head("key"),
        lambda store, _: list(store.list("a/")),
        lambda store, _: store.put("key", b"x", if_absent=True),
        lambda store, file: store.upload("key", file),
        lambda store, _: store.delete(["key"]),
    ],
    ids=["get", "head", "list", "put", "upload", "delete"],
)
def test_without_patience_a_request_is_sent_once(
    call: Callable[[S3Store, Path], object], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with counted(lambda *_: FAILS, patience_seconds=0) as (store, asked):
        with pytest.raises(StoreUnavailable):
            call(store, tmp_path / "file")
        assert sum(asked.values()) == 1


def test_a_request_is_sent_again_as_often_as_the_log_says(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", logger="modelchain.store.s3_connection"),
        counted(lambda *_: FAILS, patience_seconds=2) as (store, asked),
    ):
        with pytest.raises(StoreUnavailable):
            store.get("key")
        said = [
            record.getMessage() for record in caplog.records
        ]  # what other stores of this process say, too
        again = [text for text in said if text.startswith(store.uri_of("key")) and "trying again" in text]
        assert 1 <= len(again) == sum(asked.values()) - 1


def test_of_an_upload_only_the_part_that_failed_is_sent_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (2 * PART + 1))

    def respond(method: str, path: str, before: int) -> Answer:
        if method == "POST":
            name = "InitiateMultipartUpload" if path.endswith("uploads") else "CompleteMultipartUpload"
            return Answer(body=f"<{name}Result><UploadId>u</UploadId><ETag>e</ETag></{name}Result>".encode())
        return FAILS if "partNumber=2" in path and before < 2 else Answer(headers={"ETag": '"part"'})

    with counted(respond, patience_seconds=30) as (store, asked):
        store.upload("key", tmp_path / "file")
    parts = {
        found[1]: count
        for what, count in asked.items()
        if (found := re.search(r"PUT .*partNumber=(\d)", what))
    }
    assert parts == {"1": 1, "2": 3, "3": 1}
    assert sum(count for what, count in asked.items() if what.startswith("POST")) == 2


def test_of_a_listing_only_the_page_that_failed_is_asked_for_again() -> None:
    def respond(_: str, path: str, before: int) -> Answer:
        second = "continuation-token=next" in path
        if second and before < 2:
            return FAILS
        name, more = ("b", "false") if second else ("a", "true")
        following = "" if second else "<NextContinuationToken>next</NextContinuationToken>"
        item = f"<Key>prefix/{name}</Key><Size>1</Size><LastModified>2026-11-20T00:00:00Z</LastModified>"
        body = f"<Contents>{item}</Contents><IsTruncated>{more}</IsTruncated>{following}"
        return Answer(body=f"<ListBucketResult>{body}</ListBucketResult>".encode())

    with counted(respond, patience_seconds=30) as (store, asked):
        assert [info.key for info in store.list("")] == ["a", "b"]
    assert sorted(asked.values()) == [1, 3]
