"""What a model says of a few samples of a set with classes, for people to look at."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image
from torch import Tensor

from modelchain_trainer.evaluation.evaluate import evaluating
from modelchain_trainer.evaluation.evaluation_set import ClassifiedImages, Run
from modelchain_trainer.model.family import AnyModel

EXAMPLES = 24
EXAMPLE_CLASSES = 3
THUMBNAIL_SIDE = 96  # pixels


def example_predictions(model: AnyModel, evaluation: ClassifiedImages, path: Path, run: Run) -> None:
    """Write predictions.json: what the model says of 24 samples spread evenly over the set, with thumbnails.

    All ranks call it; rank 0 writes. The format is `artifacts.Predictions`.
    """
    total = len(evaluation.source)
    count = min(EXAMPLES, total)
    with evaluating(model):
        classify = evaluation.classifier(model, run)
        if run.group.rank != 0:
            return
        batch = evaluation.source.samples([number * total // count for number in range(count)])
        assert batch.labels is not None
        probability_BM = classify(batch.images).softmax(dim=1).cpu()
    classes = evaluation.classes or tuple(map(str, range(probability_BM.shape[1])))
    best = probability_BM.topk(min(EXAMPLE_CLASSES, len(classes)), dim=1)
    samples = [
        {
            "png": _thumbnail(picture),
            "label": label,
            "top": [[classes[number], value] for number, value in zip(numbers, values, strict=True)],
        }
        for picture, label, numbers, values in zip(
            batch.images, batch.labels.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
    content = {"set": evaluation.spec.name, "classes": list(classes), "samples": samples}
    path.write_text(json.dumps(content, ensure_ascii=False))


def _thumbnail(picture_3HW: Tensor) -> str:
    """The picture as PNG in base64, no side longer than THUMBNAIL_SIDE."""
    image = Image.fromarray(picture_3HW.permute(1, 2, 0).contiguous().cpu().numpy())
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()
