"""The worlds of test_worlds.py find faults: each is put in, and must come to light."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from modelchain.reconcile import start
from modelchain.resolved import ChainReference
from modelchain.status import ChainStatus
from modelchain_operator import observe, preconditions
from modelchain_operator.jobs.trees import JobTree
from modelchain_operator.kubernetes.api import Object
from tests.operator.memory_api import MemoryApi
from tests.operator.test_worlds import World

ENOUGH = settings(
    max_examples=5000,  # each fault comes to light within some hundreds, and then no more are played
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_statuses_that_are_written_over_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = MemoryApi.write_status

    async def unguarded(self: MemoryApi, chain: Object, status: Object) -> Object:
        chain = copy.deepcopy(chain)
        del chain["metadata"]["resourceVersion"]
        return await guarded(self, chain, status)

    monkeypatch.setattr(MemoryApi, "write_status", unguarded)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(World, settings=ENOUGH)


def test_a_stage_that_starts_beside_the_job_of_a_removed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = tuple(check for check in start._CHECKS if check is not start._same_weights_elsewhere)
    monkeypatch.setattr(start, "_CHECKS", checks)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(World, settings=ENOUGH)


def test_a_stage_that_starts_on_a_stale_cache_beside_what_is_left_of_a_renamed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check = preconditions.only_starts_fresh_stages

    def unaware(before: ChainStatus, *others: Any) -> bool:
        return check(before.model_copy(update={"former_stages": ()}), *others)

    monkeypatch.setattr(preconditions, "only_starts_fresh_stages", unaware)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(World, settings=ENOUGH)


def test_jobs_of_any_attempt_that_are_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = observe.job_trees

    def credulous(chain: ChainReference, _: Mapping[str, int], *others: Any) -> tuple[JobTree, ...]:
        return trees(chain, {}, *others)

    monkeypatch.setattr(observe, "job_trees", credulous)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(World, settings=ENOUGH)
