"""What people read of metrics and losses."""

from __future__ import annotations

import pytest

from modelchain.report.measures import describe
from modelchain.resolved import ResolvedTraining
from modelchain.spec import EvaluationType, LossName, TaskName
from modelchain.tasks import task_of


@pytest.mark.parametrize(
    ("kind", "metric", "said"),
    [
        (EvaluationType.ZERO_SHOT, "digits/top1", "Zero-shot accuracy on digits"),
        (EvaluationType.ACCURACY, "digits/top1", "Accuracy on digits"),
        (EvaluationType.LINEAR_PROBE, "cars/top1", "Linear-probe accuracy on cars"),
        (EvaluationType.FINE_TUNE, "cars/top1", "Accuracy after fine-tuning on cars"),
        (EvaluationType.RETRIEVAL, "val/loss", "Contrastive loss on val"),
        (EvaluationType.ACCURACY, "val/loss", "Cross-entropy on val"),
        (EvaluationType.PERPLEXITY, "val/perplexity", "Perplexity on val"),
        (EvaluationType.RETRIEVAL, "val/imageToText@5", "Recall@5 (image to text) on val"),
    ],
)
def test_metrics_are_called_by_what_was_measured(kind: EvaluationType, metric: str, said: str) -> None:
    assert describe(metric, kind) == said


def test_a_metric_of_a_set_that_is_gone_is_called_as_the_tasks_sets_call_theirs() -> None:
    clip, language_model = (
        task_of(TaskName.CLIP).evaluations,
        task_of(TaskName.LANGUAGE_MODEL).evaluations,
    )
    assert describe("digits/top1", *clip) == "Zero-shot accuracy on digits"
    assert describe("val/imageToText@1", *clip) == "Recall@1 (image to text) on val"
    assert describe("val/loss", *language_model) == "Cross-entropy a token on val"
    assert describe("val/unheard-of", *clip) == "unheard-of on val"


@pytest.mark.parametrize("loss", LossName)
def test_the_loss_of_a_clip_chain_is_called_by_its_name(loss: LossName) -> None:
    training = ResolvedTraining(
        epochs=1, warmup_steps=0, checkpoint_every_steps=1, steps_per_epoch=1, steps=1, loss=loss
    )
    assert loss.lower() in task_of(TaskName.CLIP).loss(training)
