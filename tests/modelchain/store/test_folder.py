"""What only a store in a folder has to stand: killed writers, other processes, file systems that can less."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelchain.errors import CannotWriteError, ConfigurationError, DiskFullError, UserDataError
from modelchain.resolved import ResolvedStore
from modelchain.store import (
    Bounds,
    ConflictError,
    Forbidden,
    Store,
    StoreError,
    StoreUnavailable,
    folder,
    open_store,
)
from modelchain.store.folder import LOCK, FolderStore
from tests.processes import PATIENCE_SECONDS, largest_file

OPEN = """
import sys
from pathlib import Path
from modelchain.store import ConflictError
from modelchain.store.folder import FolderStore
store = FolderStore(Path(sys.argv[1]))
"""
COUNT = """
for _ in range(int(sys.argv[2])):
    while True:
        data, etag = store.get("counter")
        try:
            store.put("counter", b"%06d" % (int(data) + 1), if_match=etag)
            break
        except ConflictError:
            pass
"""
CREATE = """
for number in range(40):
    try:
        store.put(f"k{number}", sys.argv[2].encode(), if_absent=True)
        print(number)
    except ConflictError:
        pass
"""
PUT_AND_DELETE = """
for _ in range(80):
    store.put("d/e/" + sys.argv[2], b"x")
    store.delete(["d/e/" + sys.argv[2]])
"""
WRITE_FOR_EVER = """
import hashlib
number = 0
while True:
    number += 1
    body = b"%d" % number * 400_000
    store.put("object", hashlib.sha256(body).digest() + body)
    print(number, flush=True)
"""


def python(code: str, *arguments: object, stdout: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN + code, *map(str, arguments)], text=True, stdout=stdout
    )


@pytest.fixture
def store(folder_store: FolderStore) -> FolderStore:
    return folder_store


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may read and only its owner may write."""
    found = Path(f"/tmp/modelchain-test-{os.getpid()}")  # noqa: S108 - pytest's folders are closed to others
    found.mkdir(mode=0o755)
    (found / "there").write_bytes(b"there")
    (found / "secret").write_bytes(b"secret")
    (found / "secret").chmod(0)
    found.chmod(0o555)
    yield found
    found.chmod(0o755)
    for path in found.iterdir():
        path.unlink()
    found.rmdir()


def as_plain_user(action: Callable[[], object]) -> str:
    """Class and message of the error that `action` ends with for a user without root's rights."""
    if os.geteuid() != 0:
        try:
            action()
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error}"
        return ""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            action()
        except Exception as error:  # noqa: BLE001
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_processes_that_count_together_lose_no_update(store: FolderStore) -> None:
    store.put("counter", b"0")
    children = [python(COUNT, store.root, 40) for _ in range(3)]
    assert [child.wait(PATIENCE_SECONDS) for child in children] == [0, 0, 0]
    assert store.get("counter")[0] == b"%06d" % 120


def test_of_many_processes_that_create_an_object_one_wins(store: FolderStore) -> None:
    children = [python(CREATE, store.root, name, stdout=subprocess.PIPE) for name in "abc"]
    wins = [child.communicate(timeout=PATIENCE_SECONDS)[0].split() for child in children]
    assert sorted(int(number) for each in wins for number in each) == list(range(40))
    for name, won in zip("abc", wins, strict=True):
        assert all(store.get(f"k{number}")[0] == name.encode() for number in won)


def test_a_writer_killed_at_any_moment_leaves_whole_objects(store: FolderStore) -> None:
    for delay in (0.0, 0.006, 0.014):
        child = python(WRITE_FOR_EVER, store.root, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # it has written once
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        data, _ = store.get("object")
        assert hashlib.sha256(data[32:]).digest() == data[:32]
        assert [info.key for info in store.list("")] == ["object"]
        store.put("object", data, if_match=store.get("object")[1])  # its lock died with it


def test_what_a_killed_writer_leaves_is_hidden_and_swept(store: FolderStore) -> None:
    store.put("a/b", b"")
    old, young = store.root / "a" / ".partial-0123456789abcdef", store.root / ".partial-fedcba9876543210"
    for path in (old, young):
        path.write_bytes(b"half")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    assert [info.key for info in store.list("")] == ["a/b"]
    assert store.abort_stale_uploads("nothing-here", 3600) == 0
    assert store.abort_stale_uploads("", 3600) == 1
    assert (old.exists(), young.exists()) == (False, True)
    assert store.get("a/b")[0] == b""


@pytest.mark.parametrize("key", [LOCK, f"a/{LOCK}", "a/.partial-0123456789abcdef"])
def test_names_of_the_stores_own_files_are_refused(store: FolderStore, key: str) -> None:
    with pytest.raises(UserDataError, match="the store's own use"):
        store.put(key, b"")


@pytest.mark.parametrize("granularity", [1, 10**9])
def test_an_etag_never_comes_back(
    store: FolderStore, granularity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system keeps whole seconds only."""
    utime = os.utime

    def coarse(path: Path, ns: tuple[int, int]) -> None:
        utime(path, ns=(ns[0] // granularity * granularity, ns[1] // granularity * granularity))

    monkeypatch.setattr(folder.os, "utime", coarse)
    etags = [store.put("object", b"%03d" % (number % 2)) for number in range(100)]
    assert len(set(etags)) == 100
    head = store.head("object")
    assert head is not None
    assert head.etag == etags[-1] == store.get("object")[1]


def test_a_clock_set_back_brings_no_etag_back(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5_000_000_000, 4_000_000_000, 5_000_000_000, 5_000_000_000])
    monkeypatch.setattr(folder.time, "time_ns", lambda: next(times))
    assert len({store.put("object", b"same") for _ in range(4)}) == 4


def test_without_hard_links_still_one_writer_wins(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(folder.os, "link", unsupported)
    store.put("object", b"1", if_absent=True)
    with pytest.raises(ConflictError):
        store.put("object", b"2", if_absent=True)


def test_a_link_whose_answer_was_lost_is_known_as_ours(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats a request whose answer is lost, and then finds the file that the first one made."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(folder.os, "link", twice)
    store.put("object", b"ours", if_absent=True)
    assert store.get("object")[0] == b"ours"


def test_a_file_system_without_locks_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder.fcntl, "flock", no_locks)
    store = FolderStore(tmp_path)
    assert not store.check_conditional_writes()
    store.put("object", b"1")
    with pytest.raises(StoreError, match=r"has no locks.*allowUnconditionalWrites"):
        store.put("object", b"2", if_match=store.get("object")[1])
    risky = FolderStore(tmp_path, allow_unconditional_writes=True)
    risky.put("object", b"3", if_match=store.get("object")[1])
    assert store.get("object")[0] == b"3"


def test_a_lock_that_nobody_lets_go_of_is_named(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("object", b"1")
    monkeypatch.setattr(folder, "LOCK_SECONDS", 0.05)
    with (store.root / LOCK).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match=LOCK):
            store.put("object", b"2")
    store.put("object", b"3")


def test_a_full_disk_is_named_and_the_old_object_stays(store: FolderStore, tmp_path: Path) -> None:
    store.put("a/object", b"old")
    (tmp_path / "big").write_bytes(b"x" * 1_000_000)
    with largest_file(100_000):
        for write in (
            lambda: store.put("a/object", b"x" * 1_000_000),
            lambda: store.upload("a/object", tmp_path / "big"),
        ):
            with pytest.raises(DiskFullError, match=r"store/a/object: .*free some space"):
                write()
    assert store.get("a/object")[0] == b"old"
    assert sorted(path.name for path in (store.root / "a").iterdir()) == ["object"]


def test_a_read_only_folder_can_be_read_and_refuses_writes_by_name(public_folder: Path) -> None:
    store = FolderStore(public_folder)
    assert as_plain_user(lambda: store.get("there")) == ""
    for write in (
        lambda: store.put("new", b""),
        lambda: store.put("sub/new", b""),
        lambda: store.delete(["there"]),
        store.check_conditional_writes,
    ):
        message = as_plain_user(write)
        assert message.startswith(CannotWriteError.__name__), message
        assert str(public_folder) in message
        assert "make the folder writable" in message
    assert (public_folder / "there").exists()


def test_a_file_without_read_permission_is_forbidden_not_absent(public_folder: Path) -> None:
    store = FolderStore(public_folder)
    message = as_plain_user(lambda: store.get("secret"))
    assert message.startswith(f"{Forbidden.__name__}: {store.uri}/secret: can't be read")


def test_a_file_in_the_place_of_a_folder_is_named(store: FolderStore) -> None:
    store.put("a", b"")
    with pytest.raises(CannotWriteError, match="a/b"):
        store.put("a/b", b"")
    store.put("folder/object", b"")
    with pytest.raises(CannotWriteError, match="folder: "):
        store.put("folder", b"")


def test_a_link_back_up_does_not_make_the_listing_endless(store: FolderStore, tmp_path: Path) -> None:
    store.put("a/object", b"")
    (store.root / "a" / "up").symlink_to(store.root)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "shard.tar").write_bytes(b"1")
    (store.root / "linked").symlink_to(tmp_path / "elsewhere")
    (store.root / "dangling").symlink_to(tmp_path / "nowhere")
    assert [info.key for info in store.list("")] == ["a/object", "linked/shard.tar"]


def test_looking_at_a_folder_that_does_not_exist_makes_nothing(store: FolderStore) -> None:
    assert list(store.list("")) == []
    assert store.head("a") is None
    assert not store.root.exists()


def test_deleting_removes_folders_that_became_empty(store: FolderStore) -> None:
    store.put("a/b/c/object", b"")
    store.put("a/other", b"")
    store.delete(["a/b/c/object"])
    assert [path.name for path in (store.root / "a").iterdir()] == ["other"]


def test_writing_and_deleting_side_by_side_in_one_folder_never_fails(store: FolderStore) -> None:
    children = [python(PUT_AND_DELETE, store.root, name) for name in "ab"]
    assert [child.wait(PATIENCE_SECONDS) for child in children] == [0, 0]


def test_uris_open_folders_and_others_are_refused(tmp_path: Path) -> None:
    for uri in (f"file://{tmp_path}/store", f"{tmp_path}/store"):
        assert open_store(ResolvedStore(uri=uri)).uri == f"file://{tmp_path}/store"
    for uri in ("gs://bucket/x", "file://relative/x", "http://host/x"):
        with pytest.raises(ConfigurationError, match="use s3://bucket/prefix, file:///folder or a path"):
            open_store(ResolvedStore(uri=uri))


def test_a_file_that_is_read_whole_has_a_bound(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, bounds=Bounds(object_bytes=3))
    store.put("file", b"123")
    assert store.get("file")[0] == b"123"
    store.put("file", b"1234")
    with pytest.raises(UserDataError, match="file: holds more than 3 bytes"):
        store.find("file")


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store: Store = open_store(ResolvedStore(uri="runs/store"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    store.put("object", b"")
    assert (tmp_path / "runs" / "store" / "object").exists()
