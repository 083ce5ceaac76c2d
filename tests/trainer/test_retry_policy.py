"""A store that is away is waited for; anything else is said at once."""

from __future__ import annotations

import threading

import pytest

from modelchain.store import Forbidden, NotFound, StoreUnavailable
from modelchain_trainer.retry_policy import RetryPolicy, Stopped
from tests.processes import PATIENCE_SECONDS


class Flaky:
    """Fails some times, then answers."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0
        self.called = threading.Event()

    def __call__(self) -> str:
        self.calls += 1
        self.called.set()
        if self.calls <= self.failures:
            raise StoreUnavailable("s3://data/a.tar: no answer")
        return "answer"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelchain_trainer.retry_policy._FIRST_PAUSE", 0.01)


def test_an_unavailable_store_is_asked_again() -> None:
    request = Flaky(3)
    assert RetryPolicy(60).call(request) == "answer"
    assert request.calls == 4


def test_retries_end_with_the_stores_own_error() -> None:
    with pytest.raises(StoreUnavailable, match=r"^s3://data/a\.tar: no answer \(tried for 0 s\)$"):
        RetryPolicy(0.05).call(Flaky(10**9))


@pytest.mark.parametrize("error", [NotFound("gone"), Forbidden("refused"), ValueError("a defect")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    calls = 0

    def request() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)):
        RetryPolicy(60).call(request)
    assert calls == 1


def test_stopping_ends_the_wait_of_other_threads() -> None:
    retry_policy, away, ended = RetryPolicy(600), Flaky(10**9), threading.Event()

    def wait() -> None:
        with pytest.raises(Stopped):
            retry_policy.call(away)
        ended.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert away.called.wait(PATIENCE_SECONDS)
    retry_policy.stop()
    assert ended.wait(PATIENCE_SECONDS)
    with pytest.raises(Stopped):
        retry_policy.call(lambda: "too late")
