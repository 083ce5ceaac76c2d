"""What the runner knows of the store, also while the store is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain.artifacts import LEASE, PROGRESS, Lease, attempt_folder, new_attempt_token
from modelchain.errors import ModelChainError
from modelchain.local import watch as watching
from modelchain.local.watch import StoreWatch
from modelchain.reconcile.observation import StoreProblem
from modelchain.store import Forbidden, StoreUnavailable
from modelchain.store.folder import FolderStore
from modelchain.store.s3_errors import missing_bucket
from tests.modelchain.reconcile.chains import chain, manifest, progress
from tests.processes import PATIENCE_SECONDS, wait_until

CHAIN = chain((("tiny", None), ("small", "tiny")))
TINY = CHAIN.stage("tiny")


class FlakyStore(FolderStore):
    """A folder that can be told not to answer, or to refuse."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.problem: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def get(self, key: str) -> tuple[bytes, str]:
        self.answers.wait(30)
        if self.problem is not None:
            raise self.problem
        return super().get(key)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if self.problem is not None:
            raise self.problem
        return super().put(key, data, if_absent=if_absent, if_match=if_match)


@pytest.fixture
def store(tmp_path: Path) -> FlakyStore:
    return FlakyStore(tmp_path / "store")


@pytest.fixture
def watch(store: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreWatch]:
    monkeypatch.setattr(watching, "LOCAL_SECONDS", 0.02)
    monkeypatch.setattr(
        watching, "UNRESPONSIVE_SECONDS", PATIENCE_SECONDS
    )  # but where a store hangs on purpose
    one = StoreWatch(store, CHAIN)
    one.start()
    yield one
    store.answers.set()
    one.close(timeout_seconds=10)


def train(store: FlakyStore, step: int, attempt: int = 3) -> str:
    """An attempt of ours holds the lease of `tiny` and has come to a step."""
    token = new_attempt_token(CHAIN.chain.uid, attempt)
    lease = Lease(
        holder=token,
        chain="default/family",
        sequence=1,
        duration_seconds=30,
        host="h",
        process="b/1/1",
        renewed_at="2027-01-15T08:00:00Z",
    )
    store.put(f"{TINY.folder}/{LEASE}", lease.model_dump_json(by_alias=True).encode())
    return advance(store, token, step)


def advance(store: FlakyStore, token: str, step: int) -> str:
    data = progress(step).model_dump_json(by_alias=True).encode()
    store.put(f"{attempt_folder(TINY.folder, token)}/{PROGRESS}", data)
    return token


def known_step(watch: StoreWatch) -> int | None:
    facts = watch.snapshot().facts.get("tiny")
    return facts.progress.step if facts is not None and facts.progress is not None else None


def test_signs_of_life_of_the_attempt_that_runs_are_dated_by_our_clock(
    store: FlakyStore, watch: StoreWatch
) -> None:
    token = train(store, 1)
    watch.follow({"tiny": 3}, finished=set(), not_yet={"small"})
    wait_until(lambda: known_step(watch) == 1, "the first sign of life is seen")
    first = watch.snapshot().progress_changed_at["tiny", 3]
    facts = watch.snapshot().facts["tiny"]
    assert facts.lease is not None
    assert (facts.lease.own, facts.progress_attempt) == (True, 3)
    advance(store, token, 2)
    wait_until(lambda: known_step(watch) == 2, "the second is seen")
    assert watch.snapshot().progress_changed_at["tiny", 3] > first


def test_what_an_earlier_attempt_left_is_not_taken_for_a_sign_of_life(
    store: FlakyStore, watch: StoreWatch
) -> None:
    train(store, 9, attempt=2)
    watch.follow({"tiny": 3}, finished=set(), not_yet=set())
    watch.refresh("tiny")
    wait_until(lambda: "tiny" in watch.snapshot().facts, "it was looked at")
    assert known_step(watch) is None
    assert ("tiny", 3) not in watch.snapshot().progress_changed_at


def test_nothing_is_known_of_a_stage_between_being_told_to_look_again_and_having_looked(
    store: FlakyStore, watch: StoreWatch
) -> None:
    wait_until(lambda: "tiny" in watch.snapshot().facts, "it was looked at")
    store.answers.clear()
    watch.refresh("tiny")
    assert "tiny" not in watch.snapshot().facts
    store.answers.set()
    wait_until(lambda: "tiny" in watch.snapshot().facts, "it was looked at again")


def test_a_store_that_hangs_is_called_unavailable_until_it_answers_and_that_time_is_known(
    store: FlakyStore, watch: StoreWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: "tiny" in watch.snapshot().facts, "it was looked at")
    before = watch.snapshot().readable_since
    store.answers.clear()
    monkeypatch.setattr(watching, "UNRESPONSIVE_SECONDS", 0.2)

    def problem() -> StoreProblem | None:
        return watch.snapshot().facts["tiny"].problem

    wait_until(lambda: problem() is StoreProblem.UNAVAILABLE, "its silence is noticed")
    store.answers.set()
    wait_until(lambda: problem() is None, "it answers")
    wait_until(lambda: watch.snapshot().readable_since > before, "the gap is noted")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (StoreUnavailable("s3://x: 503"), StoreProblem.UNAVAILABLE),
        (Forbidden("s3://x: refused"), StoreProblem.FORBIDDEN),
        (missing_bucket("x", "s3://x", None), StoreProblem.MISCONFIGURED),
    ],
)
def test_errors_of_the_store_are_told_apart(
    store: FlakyStore, watch: StoreWatch, error: ModelChainError, problem: StoreProblem
) -> None:
    store.problem = error
    wait_until(
        lambda: (facts := watch.snapshot().facts.get("tiny")) is not None and facts.problem is problem,
        "it is noticed",
    )


def test_a_damaged_manifest_is_a_problem_of_its_own(store: FlakyStore, watch: StoreWatch) -> None:
    store.put(f"{TINY.folder}/manifest.json", b"{")
    wait_until(
        lambda: (
            (facts := watch.snapshot().facts.get("tiny")) is not None
            and facts.problem is StoreProblem.DAMAGED
        ),
        "it is noticed",
    )
    assert "manifest.json" in watch.snapshot().facts["tiny"].message


def test_a_manifest_is_verified_before_it_is_believed(store: FlakyStore, watch: StoreWatch) -> None:
    other = manifest(CHAIN.stage("small"))
    store.put(f"{TINY.folder}/manifest.json", other.model_dump_json(by_alias=True).encode())
    wait_until(
        lambda: (
            (facts := watch.snapshot().facts.get("tiny")) is not None
            and facts.problem is StoreProblem.DAMAGED
        ),
        "it is noticed that it is another stage's",
    )


def test_the_newest_record_is_written_as_soon_as_the_store_is_back(
    store: FlakyStore, watch: StoreWatch
) -> None:
    store.problem = StoreUnavailable("s3://x: 503")
    watch.write("chains/default/family.json", b"first")
    watch.write("chains/default/family.json", b"second")
    store.problem = None

    def written() -> bytes:
        found = store.find("chains/default/family.json")
        return b"" if found is None else found[0]

    wait_until(lambda: written() == b"second", "it is written")


def test_closing_writes_the_last_record(store: FlakyStore, watch: StoreWatch) -> None:
    watch.write("chains/default/family.json", b"last")
    watch.close(timeout_seconds=10)
    assert store.get("chains/default/family.json")[0] == b"last"


def test_the_first_look_raises_what_a_person_must_mend(store: FlakyStore) -> None:
    store.problem = Forbidden("s3://x: refused")
    with pytest.raises(Forbidden):
        StoreWatch(store, CHAIN).read_all()


def test_an_error_that_nobody_foresaw_is_told_and_the_store_is_read_on(
    store: FlakyStore, watch: StoreWatch
) -> None:
    wait_until(lambda: "tiny" in watch.snapshot().facts, "the store is read")
    store.problem = KeyError("ETag")
    watch.refresh("tiny")
    wait_until(
        lambda: known_problem(watch) is StoreProblem.UNREADABLE, "reading it has failed, and that is known"
    )
    assert "unforeseen KeyError" in watch.snapshot().facts["tiny"].message
    store.problem = None
    wait_until(lambda: known_problem(watch) is None, "it is read again")


def test_whatever_ends_the_thread_reaches_the_runner(
    store: FlakyStore, watch: StoreWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(watch, "_write_record", fail)

    def has_told() -> bool:
        try:
            watch.snapshot()
        except RecursionError:
            return True
        return False

    wait_until(has_told, "the end of the thread is told")


def known_problem(watch: StoreWatch) -> StoreProblem | None:
    facts = watch.snapshot().facts.get("tiny")
    return facts.problem if facts is not None else None
