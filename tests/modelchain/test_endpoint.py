"""One form of an endpoint: what the validation takes, the CRD and the operator take, and nobody reads otherwise."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest

from modelchain.crd import custom_resource_definition
from modelchain.endpoint import is_endpoint
from modelchain.validation import check_object

GOOD = (
    "http://minio:9000",
    "https://s3.example.com",
    "https://s3.example.com/",
    "https://s3.example.com./path",
    "https://x.example.co/storage/v1/s3",
    "http://my_minio-1:65535",
    "http://10.0.0.1:1",
    "http://2852039166",
    "http://[::1]:9000",
    "https://[fd12::9]",
    "https://[::ffff:10.0.0.1]/a%20b",
    "https://EXAMPLE.com",
)
BAD = (
    "",
    "minio:9000",
    "ftp://h",
    "https://",
    "https:///p",
    "https://[::1",
    "https://::1",
    "https://[]",
    "https://[::1]x",
    "https://[fe80::1%25eth0]",
    "https://[v1.x]",
    "https://[1:2]",
    "https://a]b",
    "https://a:",
    "https://a:0",
    "https://a:x",
    "https://a:99999",
    "https://a:65536",
    "https://a:080",
    "https://:443",
    "https://..",
    "https://a..b.com",
    "https://.a.com",
    "https://-a.com",
    "https://" + "a" * 64 + ".com",
    "https://" + "a." * 127 + "com",
    "https://evil.com\\.example.com",
    "https://a\\b",
    "https://a b",
    "https://a\u200b.com",
    "https://\uff4bubernetes.default.svc",
    "https://\u2460\u2465\u2468.254.169.254",
    "https://a?x=1",
    "https://a/p?x=1",
    "https://a#f",
    "https://a/#f",
    "https://user@a",
    "https://user:word@a",
    "https://a.com:443@",
    "https://a\n",
    "https://a/\r",
    "HTTPS://a",
)  # fmt: skip


@pytest.mark.parametrize("url", GOOD)
def test_addresses_of_servers_are_taken_by_all(url: str) -> None:
    assert is_endpoint(url)
    assert re.fullmatch(crd_pattern(), url)
    assert problems(url) == []
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port is None or 0 < parts.port < 65536


@pytest.mark.parametrize("url", BAD)
def test_what_is_none_is_refused_by_all(url: str) -> None:
    assert not is_endpoint(url)
    (problem,) = problems(url)
    assert "endpointUrl" in problem


@pytest.mark.parametrize("url", [url for url in BAD if url not in ("https://[1:2]", "https://[::1]x")])
def test_the_crd_refuses_what_a_pattern_can_tell(url: str) -> None:
    if len(url) < 250:
        assert not re.fullmatch(crd_pattern(), url)


@pytest.mark.parametrize("server", ["[::1", "a]b", "a:99999", "a:x", "..", "a\\b", "a b", ""])
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_servers_of_data_are_written_in_that_form_too(scheme: str, server: str) -> None:
    (problem, *_) = problems(shards=f"{scheme}://{server}/{{0..3}}.tar")
    assert "no server" in problem


@pytest.mark.parametrize("server", ["h", "h:8080", "data{0..3}.example.com", "[::1]:8080"])
def test_servers_of_data_may_be_a_range(server: str) -> None:
    assert problems(shards=f"https://{server}/0.tar?x=a:b/c") == []


def problems(url: str = "http://minio:9000", shards: str = "s3://b/t.tar") -> list[str]:
    spec = {
        "image": "x:1",
        "store": {"uri": "s3://b/p", "endpointUrl": url, "secretRef": {"name": "s3"}},
        "data": {"shards": [shards], "samples": 4096},
        "training": {"epochs": 1, "globalBatchSize": 64},
        "stages": [{"name": "s", "model": "ViT-S-16"}],
    }
    document: dict[str, Any] = {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": "f"},
        "spec": spec,
    }
    return [str(problem) for problem in check_object("f", document).problems]


def crd_pattern() -> str:
    definition: Any = custom_resource_definition()
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema["properties"]["spec"]["properties"]["store"]["properties"]["endpointUrl"]["pattern"]
