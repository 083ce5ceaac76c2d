"""Endpoints that are no S3 server, or one with habits of its own: each mistake is said once, and nothing is retried."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelchain.errors import ConfigurationError, is_permanent
from modelchain.resolved import ResolvedStore
from modelchain.store import Credentials, Forbidden, Store, open_store
from modelchain.store.s3_answers import NotS3Error
from tests.modelchain.store.odd_server import (
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

KEYS = Credentials("key", "secret")


def store_at(
    endpoint: str, *, ca_bundle: Path | None = None, credentials: Credentials | None = KEYS
) -> Store:
    access = ResolvedStore(
        uri="s3://bucket/chains", endpoint_url=endpoint, ca_bundle=ca_bundle and str(ca_bundle)
    )
    return open_store(access, patience_seconds=60.0, credentials=credentials)


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


def test_a_listing_that_never_goes_on_is_an_error(tmp_path: Path) -> None:
    with serve(endless_listing) as endpoint, pytest.raises(NotS3Error, match="can't be understood"):
        list(store_at(endpoint).list(""))


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
