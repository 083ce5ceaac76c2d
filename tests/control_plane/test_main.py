"""`make cluster` says what to type next."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.control_plane.__main__ import SECRET_NAME, instructions
from tests.seaweedfs import BUCKET


def test_the_store_that_chains_are_told_to_name_is_the_clusters() -> None:
    text = instructions(
        pods=Path("pods"),
        kubeconfig=Path("kubeconfig"),
        chain=Path("digits.yaml"),
        endpoint="http://127.0.0.1:1",
    )
    (line,) = (line for line in text.splitlines() if line.strip().startswith("store:"))
    assert yaml.safe_load(line) == {
        "store": {
            "uri": f"s3://{BUCKET}/chains",
            "endpointUrl": "http://127.0.0.1:1",
            "secretRef": {"name": SECRET_NAME},
        }
    }
