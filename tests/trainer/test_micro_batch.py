"""`microBatchSize: Auto`: how many samples a forward pass takes, and that later attempts take as many."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from modelchain.artifacts import MICRO_BATCH
from modelchain.families import ModelConfig
from modelchain.resolved import ResolvedStage
from modelchain.spec import FOUND_BY_TRAINER, Sharding, TaskName
from modelchain.store import open_store
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.distributed.collectives import GradientSum, Group
from modelchain_trainer.ending import GpuOutOfMemoryError, out_of_memory
from modelchain_trainer.micro_batch import MOST_ON_CPU, Trial, largest_that_fits, settle
from modelchain_trainer.model.build import build_model
from modelchain_trainer.retry_policy import RetryPolicy
from modelchain_trainer.tasks import task_of
from modelchain_trainer.tasks.task import Setting, StepBatch
from tests.trainer.stages import smallest_stage

CPU = torch.device("cpu")
CLASSIFIER = {
    "task": TaskName.CLASSIFICATION,
    "modelConfig": {
        "classes": 3,
        "vision": {"imageSize": 8, "patchSize": 4, "width": 16, "layers": 1, "headWidth": 16},
    },
}
LANGUAGE_MODEL = {
    "task": TaskName.LANGUAGE_MODEL,
    "modelConfig": {"width": 16, "layers": 1, "heads": 1, "contextLength": 8, "vocabularySize": 32},
}


def stage(changes: dict[str, Any] | None = None, **training: Any) -> ResolvedStage:
    given = smallest_stage(training=training, store={"uri": "store"}) | (changes or {})
    return ResolvedStage.model_validate(given)


def setting(of: ResolvedStage) -> Setting:
    model = build_model(of.model_config_, seed=1)
    return Setting(model, None, None, of, CPU, Group(), GradientSum([], Group()))


@pytest.mark.parametrize(
    ("share", "most", "limit", "found"),
    [
        (1024, 1024, 2000, 1024),
        (1024, 1024, 300, 256),
        (96, 96, 7, 6),
        (96, 48, 96, 48),
        (7, 7, 3, 1),
        (7, 7, 0, None),
    ],
)
def test_the_share_is_halved_until_it_fits_and_divided_evenly(
    share: int, most: int, limit: int, found: int | None
) -> None:
    assert largest_that_fits(share, most, lambda rows: rows <= limit) == found


@pytest.mark.parametrize("changes", [{}, CLASSIFIER, LANGUAGE_MODEL], ids=["clip", "classifier", "language"])
def test_a_trial_runs_the_step_of_its_task_and_leaves_no_trace(changes: dict[str, Any]) -> None:
    working_on = setting(stage(changes, patchDropout=0.0 if changes is LANGUAGE_MODEL else 0.5))
    before = {name: tensor.clone() for name, tensor in working_on.model.state_dict().items()}
    trial, tried = Trial.of(working_on), []

    def short_of_memory(rows: int) -> StepBatch:
        tried.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError
        return trial.widest_batch(rows)

    assert Trial(trial.setting, short_of_memory).largest(12, 12) == 3
    assert tried == [12, 6, 3]
    assert Trial(trial.setting, short_of_memory).largest(12, 1) == 1
    assert all(parameter.grad is None for parameter in working_on.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in working_on.model.state_dict().items())


def test_a_trial_encodes_texts_of_the_whole_context() -> None:
    trial = Trial.of(setting(stage()))
    objective: Any = task_of(trial.setting.stage).objective(trial.setting)
    ((images, captions, _),) = objective.micro_batches(trial.widest_batch(5))
    assert images.shape == (5, 3, 8, 8)
    assert [bucket.shape for bucket in captions.buckets] == [(5, 8)]


class _Ranks:
    """One process, as if it were one of several."""

    first = True

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def share(self, _name: str, make: Any) -> str:
        return make()


def settled(
    folder: Path, *, ranks: int = 1, sharding: Sharding = Sharding.NONE, **training: Any
) -> int | None:
    fields: dict[str, Any] = {"globalBatchSize": 384, "microBatchSize": FOUND_BY_TRAINER, **training}
    of = stage(None, **fields)
    attempt: Any = SimpleNamespace(
        stage=of,
        store=open_store(of.store.model_copy(update={"uri": str(folder)})),
        ranks=_Ranks(ranks),
        retry_policy=RetryPolicy(),
    )
    return settle(cast("Attempt", attempt), setting(of), sharding).training.micro_batch_size


def test_what_was_found_is_kept_for_attempts_under_the_same_circumstances(tmp_path: Path) -> None:
    assert settled(tmp_path) == MOST_ON_CPU
    assert settled(tmp_path, ranks=8) == 48
    (record,) = tmp_path.rglob(MICRO_BATCH)
    text = record.read_text()
    assert text.count('"size"') == 2
    record.write_text(text.replace(f'"size": {MOST_ON_CPU}', '"size": 12'))
    assert settled(tmp_path) == 12, "an earlier attempt's, whatever would be found now"
    assert settled(tmp_path, ranks=8) == 48
    assert settled(tmp_path, gradientCheckpointing=True) == MOST_ON_CPU
    assert settled(tmp_path, microBatchSize=8) == 8, "what the chain says"
    record.write_text("{")
    assert settled(tmp_path) == MOST_ON_CPU


def test_samples_that_are_normed_together_are_in_one_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelConfig, "rows_together", 24)
    assert settled(tmp_path) == 48
    assert settled(tmp_path / "more", ranks=8) == 48
    error = out_of_memory(96, stage(globalBatchSize=96).training, "CUDA out of memory", together=32)
    assert "write training.microBatchSize: 32 or Auto" in str(error)
    assert "gradientCheckpointing" not in str(error)
    smallest = stage(globalBatchSize=96, microBatchSize=32).training
    assert "take a larger GPU" in str(out_of_memory(96, smallest, "CUDA out of memory", together=32))


def test_a_size_that_was_tried_is_named_where_memory_ran_out() -> None:
    error = out_of_memory(1024, stage(globalBatchSize=1024).training, "CUDA out of memory", 128)
    assert isinstance(error, GpuOutOfMemoryError)
    assert "write training.microBatchSize: 128, which fits and changes no digest" in str(error)
