"""Metrics against plain definitions over the whole set, for one rank and for several."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from modelchain.errors import UserDataError
from modelchain.families import ModelConfig, TextSpec, VisionSpec
from modelchain.spec import EvaluationDataSpec, EvaluationSpec, EvaluationType, Precision
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.evaluation import embeddings, examples
from modelchain_trainer.evaluation.evaluate import evaluate
from modelchain_trainer.evaluation.evaluation_set import Run
from modelchain_trainer.evaluation.examples import example_predictions
from modelchain_trainer.evaluation.retrieval import RetrievalSet
from modelchain_trainer.evaluation.zero_shot import ZeroShotSet
from modelchain_trainer.model.build import build_model
from modelchain_trainer.model.clip import Clip
from tests.trainer.evaluation.loud_model import loud_model
from tests.trainer.ranks import on_ranks

SIZE, CONTEXT, BATCH = 16, 8, 4
CLASSES = tuple(f"class {number}" for number in range(11))


@dataclass(frozen=True)
class Samples:
    indices: Tensor
    images: Tensor
    labels: Tensor | None = None
    captions: list[list[str]] | None = None


@dataclass(frozen=True)
class InMemory:
    """A set in memory, of which some samples may be unreadable."""

    images: Tensor
    labels: Tensor | None = None
    captions: list[list[str]] | None = None
    unreadable: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, rank: int, world_size: int) -> Iterator[Samples]:
        for number, start in enumerate(range(0, len(self.images), BATCH)):
            if number % world_size == rank:
                yield self.samples(range(start, min(start + BATCH, len(self.images))))

    def samples(self, indices: Sequence[int]) -> Samples:
        readable = [index for index in indices if index not in self.unreadable]
        return Samples(
            torch.tensor(readable, dtype=torch.int64),
            self.images[readable],
            None if self.labels is None else self.labels[readable],
            None if self.captions is None else [self.captions[index] for index in readable],
        )

    def check_readable(self, readable_n: Tensor, name: str) -> None:
        if not bool(readable_n.any()):
            raise UserDataError(f"{name}: none can be read")

    def describe(self, sample: int) -> str:
        return f"sample {sample}"


def tokenize(texts: Sequence[str]) -> Tensor:
    """A stand-in for the real tokenizer: characters, between the same begin and end tokens."""
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        letters = [ord(letter) for letter in text[-(CONTEXT - 2) :]]
        row[: len(letters) + 2] = torch.tensor([49406, *letters, 49407])
    return tokens


RUN = Run(tokenizer=tokenize)


def pictures(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randint(256, (count, 3, 4, 4), generator=generator).float()
    return functional.interpolate(coarse, SIZE).to(torch.uint8)


def zero_shot(source: InMemory, classes: tuple[str, ...] = CLASSES) -> ZeroShotSet:
    spec = EvaluationSpec(
        name="things",
        type=EvaluationType.ZERO_SHOT,
        data=EvaluationDataSpec(shards=["a.tar"]),
        templates=["{}", "a {}", "{} b"],
    )
    return ZeroShotSet(spec, source, classes)


def retrieval(source: InMemory, captions: int) -> RetrievalSet:
    spec = EvaluationSpec(
        name="val", type=EvaluationType.RETRIEVAL, data=EvaluationDataSpec(shards=["a.tar"])
    )
    return RetrievalSet(spec, source, captions)


@pytest.fixture(scope="module")
def model() -> Iterator[Clip]:
    text = TextSpec(context_length=CONTEXT, vocab_size=49408, width=32, layers=2, heads=2)
    vision = VisionSpec(image_size=SIZE, patch_size=8, width=32, layers=2, head_width=16)
    with loud_model(ModelConfig(embed_dim=16, vision=vision, text=text)) as built:
        yield built


def class_embeddings(model: Clip) -> Tensor:
    rows = []
    for name in CLASSES:
        prompts = model.encode_text(tokenize([name, f"a {name}", f"{name} b"]))
        rows.append(functional.normalize(prompts.mean(dim=0), dim=0))
    return torch.stack(rows)


@torch.no_grad()
def test_zero_shot_accuracy_over_averaged_prompts(model: Clip) -> None:
    images = pictures(30)
    scores = model.encode_image(normalize(images, torch.float32)) @ class_embeddings(model).T
    order = scores.argsort(dim=1, descending=True)
    # Answers at known places of the model's ranking: 12 first, 9 fourth, 9 sixth.
    places = torch.tensor([0] * 12 + [3] * 9 + [5] * 9)
    labels = order[torch.arange(30), places]
    metrics = evaluate(model, [zero_shot(InMemory(images, labels))], RUN)
    assert metrics == pytest.approx({"things/top1": 12 / 30, "things/top5": 21 / 30})


@torch.no_grad()
def test_top5_is_left_out_where_there_are_few_classes(model: Clip) -> None:
    source = InMemory(pictures(4), torch.tensor([0, 1, 2, 8]))
    assert list(evaluate(model, [zero_shot(source, CLASSES[:9])], RUN)) == ["things/top1"]


@torch.no_grad()
def test_retrieval_metrics_are_those_of_the_full_matrix_of_scores(
    model: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "CHUNK_ELEMENTS", 50)  # a few rows at once
    monkeypatch.setattr(embeddings, "TEXT_BATCH", 7)
    images = pictures(30)
    captions = [[f"x{number}", f"{number * 7919} y"] for number in range(30)]
    image = model.encode_image(normalize(images, torch.float32)).double()
    texts = [model.encode_text(tokenize([pair[column] for pair in captions])).double() for column in (0, 1)]
    scores = image @ torch.cat(texts).T  # [30, 60]: caption t belongs to image t % 30
    scale = model.logit_scale.exp().double()
    rank_of_image = (scores[:, None, :] > scores.view(30, 2, 30).diagonal(dim1=0, dim2=2).T[:, :, None]).sum(
        -1
    )
    best_text = rank_of_image.amin(dim=1)
    best_image = (scores.T[torch.arange(60), torch.arange(60) % 30][:, None] < scores.T).sum(-1)
    expected = {f"val/imageToText@{k}": (best_text < k).double().mean().item() for k in (1, 5, 10)}
    expected |= {f"val/textToImage@{k}": (best_image < k).double().mean().item() for k in (1, 5, 10)}
    target = torch.arange(30)
    expected["val/loss"] = sum(
        (functional.cross_entropy(m, target) + functional.cross_entropy(m.T, target)).item() / 4
        for m in (scale * image @ text.T for text in texts)
    )
    assert 0 < expected["val/textToImage@1"] < expected["val/textToImage@10"] < 1

    metrics = evaluate(model, [retrieval(InMemory(images, captions=captions), 2)], RUN)
    assert metrics == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_captions_that_read_the_same_are_one_candidate(model: Clip) -> None:
    images = pictures(24)
    words = [f"word {number}" for number in range(60)]
    scores = model.encode_image(normalize(images, torch.float32)) @ model.encode_text(tokenize(words)).T
    captions = [[words[number]] for number in scores.argmax(dim=1).tolist()]
    assert 1 < len({caption for (caption,) in captions}) < 24
    metrics = evaluate(model, [retrieval(InMemory(images, captions=captions), 1)], RUN)
    assert metrics["val/imageToText@1"] == 1.0  # though many images share the caption found


@torch.no_grad()
def test_a_model_that_says_the_same_of_everything_is_as_good_as_chance(model: Clip) -> None:
    images = pictures(1).expand(20, -1, -1, -1)
    captions = [[f"{number}"] for number in range(20)]
    metrics = evaluate(model, [retrieval(InMemory(images, captions=captions), 1)], RUN)
    assert metrics["val/textToImage@1"] == pytest.approx(1 / 20)
    assert metrics["val/textToImage@5"] == pytest.approx(5 / 20)


@torch.no_grad()
@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_metrics_do_not_depend_on_the_number_of_ranks(
    model: Clip, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    monkeypatch.setattr(embeddings, "CHUNK_ELEMENTS", 50)
    monkeypatch.setattr(embeddings, "TEXT_BATCH", 7)
    images = pictures(30)
    labels = torch.arange(30) % 11
    captions = [[f"x{number}", f"{number * 7919} y"] for number in range(30)]
    sets = [
        zero_shot(InMemory(images, labels, unreadable=frozenset({0, 17}))),
        retrieval(InMemory(images, captions=captions, unreadable=frozenset({3, 4, 5, 6})), 2),
    ]
    expected = evaluate(model, sets, RUN)
    found = on_ranks(world_size, lambda group: evaluate(model, sets, Run(group=group, tokenizer=tokenize)))
    assert found == [expected] * world_size  # bit for bit


@torch.no_grad()
def test_unreadable_samples_count_for_nothing(model: Clip) -> None:
    images, labels = pictures(12), torch.arange(12) % 11
    without = torch.tensor([number for number in range(12) if number not in (0, 5)])
    metrics = evaluate(model, [zero_shot(InMemory(images, labels, unreadable=frozenset({0, 5})))], RUN)
    expected = evaluate(model, [zero_shot(InMemory(images[without], labels[without]))], RUN)
    assert metrics == pytest.approx(expected)


def test_a_set_without_a_readable_sample_is_refused(model: Clip) -> None:
    source = InMemory(pictures(3), torch.zeros(3, dtype=torch.int64), unreadable=frozenset({0, 1, 2}))
    with pytest.raises(UserDataError, match="things: none can be read"):
        evaluate(model, [zero_shot(source)], RUN)


def test_a_label_that_is_no_class_is_refused(model: Clip) -> None:
    source = InMemory(pictures(3), torch.tensor([0, 11, 2]))
    with pytest.raises(UserDataError, match="things: labels run from 0 to 11, but classes from 0 to 10"):
        evaluate(model, [zero_shot(source)], RUN)


def test_broken_weights_are_never_right(model: Clip) -> None:
    broken = build_model(model.config, seed=3)
    with torch.no_grad():
        broken.visual.proj.fill_(float("nan"))
    source = InMemory(pictures(8), torch.arange(8))
    assert evaluate(broken, [zero_shot(source)], RUN)["things/top5"] == 0


def test_evaluation_reports_progress_and_leaves_the_model_as_it_was(model: Clip) -> None:
    model.train()
    calls: list[None] = []
    source = InMemory(pictures(9), torch.zeros(9, dtype=torch.int64))
    evaluate(model, [zero_shot(source)], Run(on_progress=lambda: calls.append(None), tokenizer=tokenize))
    assert len(calls) == 3 + 1  # three batches of images, one of prompts
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def test_bf16_metrics_are_close_to_fp32(model: Clip) -> None:
    captions = [[f"x{number}"] for number in range(16)]
    sets = [retrieval(InMemory(pictures(16), captions=captions), 1)]
    exact = evaluate(model, sets, RUN)["val/loss"]
    rounded = evaluate(model, sets, Run(Precision.BF16, tokenizer=tokenize))["val/loss"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=2e-2)


@torch.no_grad()
def test_example_predictions_show_pictures_labels_and_the_three_likeliest_classes(
    model: Clip, tmp_path: Path
) -> None:
    images, labels = pictures(50), torch.arange(50) % 11
    path = tmp_path / "predictions.json"
    example_predictions(model, zero_shot(InMemory(images, labels)), path, RUN)
    content = json.loads(path.read_text())
    assert content["set"] == "things"
    assert content["classes"] == list(CLASSES)
    assert len(content["samples"]) == 24
    chosen = [number * 50 // 24 for number in range(24)]  # evenly spread
    assert [sample["label"] for sample in content["samples"]] == labels[chosen].tolist()

    image = model.encode_image(normalize(images[chosen], torch.float32))
    probabilities = (model.logit_scale.exp() * image @ class_embeddings(model).T).softmax(dim=1)
    for sample, row, picture in zip(content["samples"], probabilities, images[chosen], strict=True):
        best = row.topk(3)
        assert [name for name, _ in sample["top"]] == [CLASSES[number] for number in best.indices.tolist()]
        assert [value for _, value in sample["top"]] == pytest.approx(best.values.tolist(), rel=1e-4)
        with Image.open(io.BytesIO(base64.b64decode(sample["png"]))) as shown:
            assert (shown.format, shown.size) == ("PNG", (SIZE, SIZE))
            assert shown.tobytes() == picture.permute(1, 2, 0).contiguous().numpy().tobytes()


@torch.no_grad()
def test_large_pictures_become_thumbnails() -> None:
    picture = torch.randint(256, (3, 224, 224), dtype=torch.uint8)
    with Image.open(io.BytesIO(base64.b64decode(examples._thumbnail(picture)))) as shown:
        assert shown.size == (96, 96)
