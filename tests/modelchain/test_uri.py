"""Which addresses hold credentials, in whatever spelling, and which only look as if they did."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelchain.errors import ConfigurationError
from modelchain.resolved import ResolvedStore
from modelchain.store import open_store
from modelchain.store.open import open_location
from modelchain.uri import CREDENTIALS_PATTERN, URI_PATTERN, holds_credentials, without_credentials

SECRET = "wJalrXUtnFEMI"  # noqa: S105  of nobody
HOLDING = [
    # a user and a password
    f"s3://ID:{SECRET}@bucket/chains",
    f"https://me:{SECRET}@example.org/x.tar",
    f"https://{SECRET}@example.org/x.tar",
    f"HTTPS://me:{SECRET}@example.org",
    f"https://me%3A{SECRET}@example.org/x.tar",
    f"https://me:{SECRET}%40example.org/x.tar",
    f"https://me:{SECRET}%2540example.org/x.tar",
    f"abfs://me:{SECRET}@example.org/x.tar",
    f"me:{SECRET}@example.org/x.tar",
    f"//me:{SECRET}@example.org/x.tar",
    f"s3:/me:{SECRET}@bucket/x",
    rf"https:\\me:{SECRET}@example.org/x",
    # a query that is signed, or holds a token
    f"https://b.s3.amazonaws.com/x.tar?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={SECRET}",
    f"https://b.s3.amazonaws.com/x.tar?X-Amz-Credential={SECRET}%2F20261128%2Feu",
    f"https://b.s3.amazonaws.com/x.tar?x-amz-security-token={SECRET}",
    f"https://b.s3.amazonaws.com/x.tar?AWSAccessKeyId=ID&Expires=1&Signature={SECRET}",
    f"s3://bucket/x.tar?AWSACCESSKEYID={SECRET}",
    f"https://storage.googleapis.com/b/x?GoogleAccessId=me&Expires=1&Signature={SECRET}",
    f"https://storage.googleapis.com/b/x?X-Goog-Signature={SECRET}",
    f"https://a.blob.core.windows.net/c/x?sv=2024-05-04&se=2027-01-01&sr=b&sp=r&sig={SECRET}",
    f"https://a.blob.core.windows.net/c/x?sv=2024-05-04;SIG={SECRET}",
    f"az://container/x?sig={SECRET}",
    f"https://d.cloudfront.net/x?Expires=1&Key-Pair-Id=K2&Policy=eyJ&Signature={SECRET}",
    f"https://oss.example.org/x?OSSAccessKeyId=ID&Signature={SECRET}",
    f"https://example.org/x?access_token={SECRET}",
    f"https://example.org/x?a=b&api_key={SECRET}",
    f"https://example.org/x?password={SECRET}",
    f"https://example.org/x?user=me&pwd={SECRET}",
    f"https://example.org/x?tempauth={SECRET}",
    f"https://example.org/x?%74oken={SECRET}",
    f"https://example.org/x?tok%65n={SECRET}",
    f"https://example.org/x?token%3D{SECRET}",
    f"https://example.org/x?a=b&amp;token={SECRET}",
    f"https://example.org/x?a=b?token={SECRET}",
    f"https://example.org/x#access_token={SECRET}",
    f"https://example.org/x?a=b#c&token={SECRET}",
    f"http://minio:9000?sig={SECRET}",
    f"http://minio:9000/#sig={SECRET}",
    f"shards/x.tar?token={SECRET}",
]
HOLDING_NONE = [
    "data/12:30@x",
    "data/2027-01-15T12:30:00@first/x.tar",
    "/data/12:30@x",
    "./12:30@x",
    "photos@12:30/x.tar",
    "file:///data/12:30@x",
    "s3://bucket/a:b@c/x.tar",
    "s3://bucket/key=3/token=4/x.tar",
    "s3://bucket/train-{000..099}.tar",
    "https://example.org/x.tar?download=true",
    "https://example.org/x.tar?versionId=3sL4kqtJlcpXroDTDmJ&partNumber=1",
    "https://example.org/x.tar?design=small&inside=1",
    "https://example.org/tokens/secret-garden/x.tar",
    "https://example.org/a@b/x%40y.tar",
    "https://example.org:8443/x.tar",
    "http://[::1]:9000/",
    "http://minio:9000",
    "az://container@account/x.tar",
    "hf://datasets/owner/name@main/x.tar",
    "hf://owner/name@main/x.tar",
    "wds #3/x.tar",
]


@pytest.mark.parametrize("uri", HOLDING)
def test_an_address_with_credentials_is_known_in_any_spelling(uri: str) -> None:
    assert holds_credentials(uri)


@pytest.mark.parametrize("uri", HOLDING_NONE)
def test_an_address_that_only_looks_so_holds_none(uri: str) -> None:
    assert not holds_credentials(uri)


@pytest.mark.parametrize("uri", [uri for uri in HOLDING if "://" in uri])
def test_no_such_address_is_opened_or_repeated(uri: str) -> None:
    for attempt in (
        lambda: open_store(ResolvedStore(uri=uri)),
        lambda: open_location(uri, ResolvedStore(uri="s3://bucket/chains")),
        lambda: open_store(ResolvedStore(uri="s3://bucket/chains", endpoint_url=uri)),
    ):
        with pytest.raises(ConfigurationError) as refused:
            attempt()
        assert SECRET not in str(refused.value)


def test_what_messages_show_of_a_url_is_its_place() -> None:
    url = f"https://me:{SECRET}@example.org:8443/x?sig={SECRET}#{SECRET}"
    assert without_credentials(url) == "https://example.org:8443/x"


PIECES = [
    "?",
    "#",
    "&",
    ";",
    "=",
    "%",
    "25",
    "3d",
    "%3D",
    "%253d",
    "%40",
    "key",
    "Sig",
    "token",
    "code",
    "a",
    "-",
    "/",
    "@",
    "\u017f",
    "\u212a",
]


@given(
    st.sampled_from(["s3://b/", "https://h/", "//", "data/", ""]),
    st.lists(st.sampled_from(PIECES), max_size=9),
)
def test_it_says_what_the_patterns_of_the_api_server_say(start: str, pieces: list[str]) -> None:
    uri = start + "".join(pieces)
    by_pattern = not re.fullmatch(URI_PATTERN, uri) or re.search(CREDENTIALS_PATTERN, uri) is not None
    assert holds_credentials(uri) == by_pattern


@pytest.mark.parametrize(
    "tail", ["?" * 1017, "?" * 500 + "key" * 170, "?" * 500 + "%20" * 170, "?" + "%20" * 338]
)
def test_no_address_takes_long(tail: str) -> None:
    """By the pattern itself one of these takes seconds, and a chain may hold a thousand."""
    for number in range(1000):
        assert not holds_credentials(f"s3://{number}/{tail}")
