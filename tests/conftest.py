"""What tests of several rooms share: a real S3 server, and stores that are empty."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from modelchain.store import Store, open_store
from modelchain.store.folder import FolderStore
from tests.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

SECONDS = {"long": 30.0, "slow": 5.0, "": 0.3}  # that a test takes that is marked so, about


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes one runs all tests of a file, so that what these share is made once; and what takes longest
    is begun first, so that all end together.
    """
    groups: dict[pytest.Item, str] = {}
    seconds: defaultdict[str, float] = defaultdict(float)
    for item in items:
        if (mark := item.get_closest_marker("xdist_group")) is not None:
            groups[item] = mark.args[0]
        else:
            groups[item] = item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(groups[item]))
        marks = ("", *(mark.name for mark in item.iter_markers()))
        seconds[groups[item]] += max(SECONDS.get(mark, 0.0) for mark in marks)
    items.sort(key=lambda item: (-seconds[groups[item]], groups[item]))


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A running server with an empty bucket; its credentials are in the environment, for children too."""
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    with pytest.MonkeyPatch.context() as environment:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        for name in (
            "AWS_PROFILE",
            "AWS_SESSION_TOKEN",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_S3",
            "AWS_REGION",
        ):
            environment.delenv(name, raising=False)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture
def s3_store(seaweedfs: SeaweedFS) -> Store:
    """An empty store in S3."""
    return open_store(seaweedfs.access(f"tests/{secrets.token_hex(6)}"))


@pytest.fixture
def folder_store(tmp_path: Path) -> FolderStore:
    """An empty store in a folder that does not exist yet."""
    return FolderStore(tmp_path / "store")


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest) -> Store:
    """An empty store of each kind."""
    return request.getfixturevalue(f"{request.param}_store")
