"""What every store promises, tried on a folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from modelchain.errors import DiskFullError, MissingInputError, UserDataError
from modelchain.store import ConflictError, NotFound, Replaced, Store
from tests.processes import largest_file
from tests.race import race


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_what_was_put_is_read_back_with_its_etag(any_store: Store) -> None:
    etag = any_store.put("a/b", b"bytes")
    assert any_store.get("a/b") == any_store.find("a/b") == (b"bytes", etag)
    head = any_store.head("a/b")
    assert head is not None
    assert (head.key, head.size, head.etag) == ("a/b", 5, etag)
    assert abs(head.modified - time.time()) < 60
    (listed,) = any_store.list("a/")
    assert (listed.key, listed.size, listed.etag) == ("a/b", 5, etag)


def test_an_object_that_is_not_there_is_not_found_and_named(any_store: Store, tmp_path: Path) -> None:
    any_store.put("a/file", b"")
    for key in ("no", "a/no", "a", "a/file/below"):
        assert any_store.head(key) is None
        assert any_store.find(key) is None
        with pytest.raises(NotFound, match=key):
            any_store.get(key)
        with pytest.raises(NotFound, match=key):
            any_store.get_range(key, 0, 0)
        with pytest.raises(NotFound, match=key):
            any_store.download(key, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert list(tmp_path.glob(".partial*")) == []


def test_a_range_of_a_version_that_was_replaced_is_not_read(any_store: Store) -> None:
    any_store.put("object", b"a" * 100)
    first = any_store.head("object")
    assert first is not None
    assert any_store.get_range_of("object", 10, 20, first.etag) == b"a" * 20
    any_store.put("object", b"b" * 100)
    with pytest.raises(Replaced):
        any_store.get_range_of("object", 10, 20, first.etag)
    assert any_store.get_range_of("object", 10, 20, "") == b"b" * 20


def test_ranges_end_where_the_object_ends(any_store: Store) -> None:
    data = bytes(range(256)) * 40
    any_store.put("object", data)
    size = len(data)
    for start in (0, 1, size - 1, size, size + 1, size + 1000):
        for length in (0, 1, 2, size - 1, size, size + 1):
            assert any_store.get_range("object", start, length) == data[start : start + length]


def test_an_empty_object_is_an_object(any_store: Store, tmp_path: Path) -> None:
    any_store.put("empty", b"")
    assert any_store.get("empty")[0] == b""
    assert any_store.get_range("empty", 0, 10) == b""
    assert any_store.download("empty", tmp_path / "copy") == hashlib.sha256(b"").hexdigest()
    assert (tmp_path / "copy").read_bytes() == b""


def test_if_absent_writes_once(any_store: Store) -> None:
    any_store.put("manifest", b"first", if_absent=True)
    with pytest.raises(ConflictError, match="manifest"):
        any_store.put("manifest", b"second", if_absent=True)
    assert any_store.get("manifest")[0] == b"first"
    any_store.delete(["manifest"])
    any_store.put("manifest", b"third", if_absent=True)


def test_if_match_replaces_only_what_was_read(any_store: Store) -> None:
    first = any_store.put("lease", b"1")
    second = any_store.put("lease", b"2", if_match=first)
    assert second != first
    with pytest.raises(ConflictError, match="lease"):
        any_store.put("lease", b"3", if_match=first)
    assert any_store.get("lease") == (b"2", second)
    any_store.delete(["lease"])
    with pytest.raises(ConflictError, match="lease"):
        any_store.put("lease", b"4", if_match=second)
    assert any_store.head("lease") is None


def test_identical_bytes_still_lose_when_the_object_exists(any_store: Store) -> None:
    any_store.put("object", b"same", if_absent=True)
    with pytest.raises(ConflictError):
        any_store.put("object", b"same", if_absent=True)


def test_of_many_threads_that_create_an_object_one_wins(any_store: Store) -> None:
    for number in range(2):
        winners = race(
            8,
            lambda i, key=f"race-{number}": any_store.put(key, b"%d" % i, if_absent=True),
            loses=ConflictError,
        )
        assert len(winners) == 1
        assert any_store.get(f"race-{number}")[0] == b"%d" % winners[0]


def test_of_many_threads_that_replace_an_object_one_wins(any_store: Store) -> None:
    etag = any_store.put("race", b"start")
    winners = race(4, lambda i: any_store.put("race", b"%d" % i, if_match=etag), loses=ConflictError)
    assert len(winners) == 1
    assert any_store.get("race")[0] == b"%d" % winners[0]


def test_listing_is_in_the_order_of_keys_and_by_prefix(any_store: Store) -> None:
    names = ["a/x", "a-b", "a.b", "a/b/c", "b", "a/b-c", "A", "stages/ViT-T-1/x", "stages/ViT-T-10/x"]
    for name in names:
        any_store.put(name, b"")
    assert keys(any_store) == sorted(names)
    assert keys(any_store, "a/") == ["a/b-c", "a/b/c", "a/x"]
    assert keys(any_store, "a") == sorted(name for name in names if name.startswith("a"))
    assert keys(any_store, "stages/ViT-T-1") == ["stages/ViT-T-1/x", "stages/ViT-T-10/x"]
    assert keys(any_store, "stages/ViT-T-1/") == ["stages/ViT-T-1/x"]
    assert keys(any_store, "nothing/like/it") == []


def test_delete_takes_what_is_there_and_what_is_not(any_store: Store) -> None:
    any_store.put("a/b/c", b"")
    any_store.put("a/d", b"")
    any_store.delete(["a/b/c", "a/nothing", "no/such/folder"])
    any_store.delete([])
    assert keys(any_store) == ["a/d"]


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../up", "a/../../up", "a//b", "a/", "./a", "a/./b", "a\0b"]
)
def test_keys_that_leave_the_store_are_refused(any_store: Store, key: str, tmp_path: Path) -> None:
    for attempt in (
        lambda: any_store.get(key),
        lambda: any_store.put(key, b"x"),
        lambda: any_store.head(key),
        lambda: any_store.delete([key]),
        lambda: any_store.get_range(key, 0, 1),
        lambda: any_store.download(key, tmp_path / "copy"),
    ):
        with pytest.raises(UserDataError, match="does not name an object"):
            attempt()


def test_a_large_file_goes_up_and_comes_down_whole(any_store: Store, tmp_path: Path) -> None:
    data = random.Random(0).randbytes((17 << 20) + 3)  # two parts on S3
    (tmp_path / "file").write_bytes(data)
    any_store.upload("large", tmp_path / "file")
    head = any_store.head("large")
    assert head is not None
    assert head.size == len(data)
    assert any_store.download("large", tmp_path / "copy") == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "copy").read_bytes() == data
    middle = 16 << 20
    assert any_store.get_range("large", middle - 7, 14) == data[middle - 7 : middle + 7]


def test_an_upload_replaces_and_a_download_overwrites(any_store: Store, tmp_path: Path) -> None:
    etag = any_store.put("object", b"old")
    (tmp_path / "file").write_bytes(b"new")
    any_store.upload("object", tmp_path / "file")
    assert any_store.get("object")[0] == b"new"
    assert any_store.get("object")[1] != etag
    (tmp_path / "copy").write_bytes(b"something that was there")
    any_store.download("object", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"


def test_a_file_that_is_not_there_can_not_be_uploaded(any_store: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no-such-file"):
        any_store.upload("object", tmp_path / "no-such-file")


def test_a_download_that_finds_no_room_names_the_file_and_leaves_nothing(
    any_store: Store, tmp_path: Path
) -> None:
    any_store.put("object", b"x" * 1_000_000)
    target = tmp_path / "down" / "copy"
    with largest_file(500_000), pytest.raises(DiskFullError, match="down/copy"):
        any_store.download("object", target)
    assert list(target.parent.iterdir()) == []


def test_conditional_writes_are_honoured(any_store: Store) -> None:
    assert any_store.check_conditional_writes()
    assert keys(any_store) == []


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "create", "replace", "replace-stale", "delete", "upload"]),
            st.sampled_from(["k", "d/k", "d/e/k"]),
        ),
        max_size=12,
    )
)
def test_any_sequence_of_writes_does_what_a_dictionary_does(
    any_store: Store, tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    any_store.delete(keys(any_store))
    model: dict[str, bytes] = {}
    etags: dict[str, list[str]] = {}
    for number, (action, key) in enumerate(steps):
        data = b"%06d" % number
        known = etags.setdefault(key, ["no-such-etag"])
        succeeds = {
            "put": True,
            "upload": True,
            "delete": True,
            "create": key not in model,
            "replace": key in model,
            "replace-stale": False,
        }[action]
        try:
            if action == "put":
                known.append(any_store.put(key, data))
            elif action == "create":
                known.append(any_store.put(key, data, if_absent=True))
            elif action == "replace":
                known.append(any_store.put(key, data, if_match=known[-1]))
            elif action == "replace-stale":
                any_store.put(
                    key, data, if_match=known[max(0, len(known) - 2)] if key in model else known[-1]
                )
            elif action == "upload":
                (tmp_path / "upload").write_bytes(data)
                any_store.upload(key, tmp_path / "upload")
                known.append(any_store.get(key)[1])
            else:
                any_store.delete([key])
            done = True
        except ConflictError:
            done = False
        assert done == succeeds, (action, key)
        if done and action == "delete":
            model.pop(key, None)
        elif done:
            model[key] = data
        assert {info.key: any_store.get(info.key)[0] for info in any_store.list("")} == model
    for known in etags.values():
        assert len(set(known)) == len(known)  # an etag never comes back
