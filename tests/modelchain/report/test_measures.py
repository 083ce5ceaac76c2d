"""What people read of a metric is in the words of the chain's task."""

from __future__ import annotations

import pytest

from modelchain.report.measures import describe
from modelchain.resolved import ResolvedTraining
from modelchain.spec import EvaluationType, LossName, TaskName
from modelchain.tasks import task_of


@pytest.mark.parametrize(
    ("task", "metric", "said"),
    [
        (TaskName.CLIP, "digits/top1", "Zero-shot accuracy on digits"),
        (TaskName.CLASSIFICATION, "digits/top1", "Accuracy on digits"),
        (TaskName.CLIP, "val/loss", "Contrastive loss on val"),
        (TaskName.CLASSIFICATION, "val/loss", "Cross-entropy on val"),
        (TaskName.LANGUAGE_MODEL, "val/perplexity", "Perplexity on val"),
        (TaskName.CLIP, "val/imageToText@5", "Recall@5 (image to text) on val"),
    ],
)
def test_metrics_are_called_as_their_task_calls_them(task: TaskName, metric: str, said: str) -> None:
    assert describe(metric, task_of(task)) == said


@pytest.mark.parametrize("loss", LossName)
def test_the_loss_of_a_clip_chain_is_called_by_its_name(loss: LossName) -> None:
    training = ResolvedTraining(
        epochs=1, warmup_steps=0, checkpoint_every_steps=1, steps_per_epoch=1, steps=1, loss=loss
    )
    assert loss.lower() in task_of(TaskName.CLIP).loss(training)


def test_a_metric_is_called_by_what_was_done_for_it() -> None:
    clip = task_of(TaskName.CLIP)
    assert describe("cars/top1", clip, EvaluationType.LINEAR_PROBE) == "Linear-probe accuracy on cars"
    assert describe("cars/top1", clip, EvaluationType.FINE_TUNE) == "Accuracy after fine-tuning on cars"
    assert describe("cars/top1", clip, EvaluationType.ZERO_SHOT) == "Zero-shot accuracy on cars"
