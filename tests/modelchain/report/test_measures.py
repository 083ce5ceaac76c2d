"""What people read of a metric is in the words of the chain's task."""

from __future__ import annotations

import pytest

from modelchain.report.measures import describe
from modelchain.spec import TaskName
from modelchain.tasks import task_of


@pytest.mark.parametrize(
    ("task", "metric", "said"),
    [
        (TaskName.CLIP, "digits/top1", "Zero-shot accuracy on digits"),
        (TaskName.CLASSIFICATION, "digits/top1", "Accuracy on digits"),
        (TaskName.CLIP, "val/loss", "Contrastive loss on val"),
        (TaskName.CLASSIFICATION, "val/loss", "Cross-entropy on val"),
        (TaskName.CLIP, "val/imageToText@5", "Recall@5 (image to text) on val"),
    ],
)
def test_metrics_are_called_as_their_task_calls_them(task: TaskName, metric: str, said: str) -> None:
    assert describe(metric, task_of(task)) == said
