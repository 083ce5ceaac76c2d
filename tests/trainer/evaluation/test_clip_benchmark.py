"""Figures of sets against those of clip_benchmark's own functions on the same weights and shards.

Those of linear probes stand in test_linear_probe.py. It has nothing to hold `FineTune` against: it trains no tower.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor

from modelchain.families import ModelConfig
from modelchain.resolved import ResolvedStage
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.tokenizer import Tokenizer
from modelchain_trainer.evaluation.evaluate import evaluate
from modelchain_trainer.evaluation.evaluation_set import Opening, Run
from modelchain_trainer.evaluation.sets import open_sets
from modelchain_trainer.model import save_weights
from modelchain_trainer.model.clip import Clip
from tests.trainer.data.shards import noise, write_shards
from tests.trainer.evaluation.loud_model import loud_model
from tests.trainer.stages import smallest_stage

pytestmark = pytest.mark.xdist_group("open_clip")  # importing it takes seconds

SIDE, CONTEXT, SAMPLES, BATCH = 32, 8, 48, 16
CLASSES = [
    "crane",
    "heron",
    "egret",
    "stork",
    "ibis",
    "swan",
    "goose",
    "duck",
    "coot",
    "rail",
    "gull",
    "tern",
]
TEMPLATES = ["a photo of a {}.", "a drawing of a {}", "{}"]
MODEL = {
    "embedDim": 16,
    "vision": {"imageSize": SIDE, "patchSize": 8, "width": 32, "layers": 2, "headWidth": 16},
    "text": {"contextLength": CONTEXT, "width": 32, "layers": 2, "heads": 2},
}


def files(number: int) -> dict[str, bytes]:
    """A picture with a label and two captions that no other has."""
    return {
        "png": noise(SIDE, seed=number),
        "cls": b"%d" % (number * 7 % len(CLASSES)),
        "txt": f"{CLASSES[number % 12]} number {number}".encode(),
        "alt.txt": f"{number} birds".encode(),
    }


@pytest.fixture
def model() -> Iterator[Clip]:
    with loud_model(ModelConfig.model_validate(MODEL)) as built:
        yield built


def batches(shards: tuple[str, ...], transform: Any, texts: bool) -> list[tuple[Tensor, Any]]:
    """Images [B, 3, S, S] as open_clip prepares them, with their captions or their labels [B]."""
    samples = list(webdataset.WebDataset(list(shards), shardshuffle=False))
    found: list[tuple[Tensor, Any]] = []
    for start in range(0, len(samples), BATCH):
        rows = samples[start : start + BATCH]
        images = torch.stack([transform(Image.open(io.BytesIO(row["png"]))) for row in rows])
        captions = [[row["txt"].decode(), row["alt.txt"].decode()] for row in rows]
        found.append((images, captions if texts else torch.tensor([int(row["cls"]) for row in rows])))
    return found


def test_figures_are_those_of_clip_benchmark_on_the_same_weights_and_shards(
    model: Clip, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "data", SAMPLES, 20, files)
    data = {"shards": list(shards)}
    sets: list[dict[str, Any]] = [
        {"name": "birds", "type": "ZeroShot", "data": data, "classes": CLASSES, "templates": TEMPLATES},
        {"name": "pairs", "type": "Retrieval", "data": data | {"captionKeys": ["txt", "alt.txt"]}},
    ]
    stage = ResolvedStage.model_validate(
        smallest_stage(modelConfig=MODEL, store={"uri": "runs"}) | {"evaluation": sets}
    )
    opened = open_sets(Opening(stage, FolderStore(tmp_path / "store"), lambda: None))
    ours = evaluate(model, opened, Run(tokenizer=Tokenizer(CONTEXT)))

    import open_clip
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    save_weights(model, model.config, tmp_path / "weights")
    loaded, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'weights'}")
    loaded.eval()
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT)
    prompts = [template.replace("{}", "{c}") for template in TEMPLATES]
    weights = zeroshot_classification.zero_shot_classifier(
        loaded, tokenizer, CLASSES, prompts, "cpu", amp=False
    )
    labelled = batches(shards, transform, texts=False)
    logits, target = zeroshot_classification.run_classification(loaded, weights, labelled, "cpu", amp=False)
    found = logits.topk(5).indices == target[:, None]  # as its `accuracy`, which NumPy 2 does not run
    theirs = {"birds/top1": found[:, 0].float().mean().item()}
    theirs["birds/top5"] = found.any(dim=1).float().mean().item()
    recalls = zeroshot_retrieval.evaluate(
        loaded, batches(shards, transform, texts=True), tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    for k in (1, 5, 10):
        theirs[f"pairs/imageToText@{k}"] = recalls[f"text_retrieval_recall@{k}"]
        theirs[f"pairs/textToImage@{k}"] = recalls[f"image_retrieval_recall@{k}"]
    print("ours", ours, "theirs", theirs)
    assert len({value for value in theirs.values() if 0 < value < 1}) > 4, "they tell nothing apart"
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)
    assert ours.keys() - theirs.keys() == {"pairs/loss"}
