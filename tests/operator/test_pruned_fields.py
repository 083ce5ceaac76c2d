"""A CRD that is older than the operator drops fields of the status: a status is compared as it would be kept."""

from __future__ import annotations

import copy
import logging

import pytest

from modelchain.status import ChainPhase, ChainStatus, StageStatus
from modelchain_operator.observe import status_object
from modelchain_operator.pruned_fields import PrunedFields

STATUS = ChainStatus(
    phase=ChainPhase.RUNNING,
    speedup_planned=2.09,
    stages=(StageStatus(name="small", activity="Training"), StageStatus(name="base", loss={"total": 1.5})),
)


def test_a_status_that_is_kept_whole_is_itself() -> None:
    kept = PrunedFields()
    kept.learn(status_object(STATUS), status_object(STATUS))
    assert kept.of(STATUS) is STATUS


def test_a_status_is_without_what_was_dropped_before(caplog: pytest.LogCaptureFixture) -> None:
    kept, asked = PrunedFields(), status_object(STATUS)
    stored = copy.deepcopy(asked)
    del stored["speedupPlanned"], stored["stages"][0]["activity"]
    with caplog.at_level(logging.WARNING):
        kept.learn(asked, stored)
        kept.learn(asked, stored)
    assert kept.of(STATUS) == ChainStatus.model_validate(stored)
    assert kept.of(ChainStatus(speedup_planned=3.0)) == ChainStatus()
    (told,) = caplog.messages
    assert "drops speedupPlanned, stages[].activity of the status: upgrade it" in told


def test_a_field_that_is_stored_once_the_crd_is_upgraded_is_not_missed_any_more() -> None:
    kept, asked = PrunedFields(), status_object(STATUS)
    stored = copy.deepcopy(asked)
    del stored["speedupPlanned"], stored["stages"][0]["activity"], stored["stages"][1]["loss"]
    kept.learn(asked, stored)
    stored["speedupPlanned"], stored["stages"][0]["activity"] = 2.09, "Training"
    kept.learn(asked, stored)
    assert kept.of(STATUS) == ChainStatus.model_validate(stored), "the loss is dropped still"
    kept.learn(asked, asked)
    assert kept.of(STATUS) == STATUS


def test_a_status_that_can_not_do_without_a_field_stays_as_it_is() -> None:
    kept, asked = PrunedFields(), status_object(STATUS)
    stored = copy.deepcopy(asked)
    for stage in stored["stages"]:
        del stage["name"]
    kept.learn(asked, stored)
    assert kept.of(STATUS) == STATUS
