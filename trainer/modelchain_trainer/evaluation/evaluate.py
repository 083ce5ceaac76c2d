"""What a model can do: zero-shot accuracy, retrieval, and example predictions for people to look at.

Samples are embedded in batches whose composition never depends on the number of ranks, and every figure is
summed in the order of the samples: a model has the same metrics, whatever evaluates it.

Shapes: n samples of the set, B samples of a batch, M distinct captions or classes, C captions of a sample, E
embedding, T tokens, r rows of a chunk.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from modelchain.errors import UserDataError
from modelchain.families.family import ImageTextConfig
from modelchain.spec import EvaluationSpec, EvaluationType, Precision
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.evaluation.accuracy import TOP_FIVE_CLASSES, accuracy, classify
from modelchain_trainer.evaluation.fine_tuning import Tuning, fine_tune
from modelchain_trainer.evaluation.linear_probe import linear_probe
from modelchain_trainer.evaluation.perplexity import PerplexitySet, perplexity
from modelchain_trainer.losses import full_precision
from modelchain_trainer.model.clip import crop_tokens
from modelchain_trainer.model.family import AnyModel, ClassifierModel, ImageTextModel
from modelchain_trainer.model.language_model import LanguageModel

RECALL_AT = (1, 5, 10)
DEFAULT_TEMPLATES = ("a photo of a {}.",)
EXAMPLES = 24
EXAMPLE_CLASSES = 3
THUMBNAIL_SIDE = 96  # pixels
TEXT_BATCH = 256
CHUNK_ELEMENTS = 2**24  # scores held at once: 64 MiB


class EvaluationBatch(Protocol):
    """Samples of a set, as `data.evaluation_data.EvaluationReader` gives them."""

    @property
    def indices(self) -> Tensor:
        """int64 [B]: places of the samples in the set; unreadable ones are missing."""
        ...

    @property
    def images(self) -> Tensor:
        """uint8 [B, 3, H, W]"""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 [B], of a ZeroShot set."""
        ...

    @property
    def captions(self) -> list[list[str]] | None:
        """One or several of each sample, of a Retrieval set."""
        ...


class EvaluationSource(Protocol):
    """A set that can be read again and again; what a batch holds does not depend on the number of ranks."""

    def __len__(self) -> int:
        """Samples of the set, unreadable ones included."""
        ...

    def batches(self, rank: int, world_size: int) -> Iterator[EvaluationBatch]:
        """The batches of one rank: those whose number is `rank` modulo `world_size`."""
        ...

    def samples(self, indices: Sequence[int]) -> EvaluationBatch:
        """These samples, without those that are unreadable."""
        ...


@dataclass(frozen=True)
class EvaluationSet:
    """A set with its data."""

    spec: EvaluationSpec
    source: EvaluationSource
    classes: tuple[str, ...] = ()  # ZeroShot: their names, in the order of their numbers
    captions: int = 0  # Retrieval: captions of each sample
    train_source: EvaluationSource | None = None  # LinearProbe and FineTune: what is trained on
    tuning: Tuning | None = None  # FineTune: the same for a training


AnySet: TypeAlias = EvaluationSet | PerplexitySet


class Tokenize(Protocol):
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 [number of texts, T]"""
        ...


def evaluate(
    model: AnyModel,
    sets: Sequence[AnySet],
    tokenizer: Tokenize | None,
    *,
    precision: Precision = Precision.FP32,
    group: Group | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Metrics of the model on all sets, the same on every rank; all ranks call it. `on_progress` runs after
    each batch.

    ZeroShot: `<set>/top1`, and `<set>/top5` from ten classes on. Retrieval: `<set>/loss`, the contrastive
    loss over the whole set, and `<set>/imageToText@k`, `<set>/textToImage@k` for k of 1, 5, 10: the share of
    images that find one of their captions among the k best of all distinct captions, and of distinct captions
    that find one of their images.

    Accuracy: as `accuracy.accuracy`. Perplexity: as `perplexity.perplexity`. LinearProbe: as
    `linear_probe.linear_probe`. FineTune: as `fine_tuning.fine_tune`.

    Raises UserDataError for a set without a readable sample, or with a label that is no class.
    """
    metrics: dict[str, float] = {}
    with _evaluating(model):
        for evaluation in sets:
            figures = _measure(model, evaluation, tokenizer, precision, group or Group(), on_progress)
            metrics |= {f"{evaluation.spec.name}/{name}": figure for name, figure in figures.items()}
    return metrics


def _measure(
    model: AnyModel,
    evaluation: AnySet,
    tokenizer: Tokenize | None,
    precision: Precision,
    group: Group,
    on_progress: Callable[[], None],
) -> dict[str, float]:
    if isinstance(evaluation, PerplexitySet):
        assert isinstance(model, LanguageModel)
        return perplexity(model, evaluation, precision=precision, group=group, on_progress=on_progress)
    assert not isinstance(model, LanguageModel)
    if evaluation.spec.type.trains:
        probe = evaluation.spec.type is EvaluationType.LINEAR_PROBE
        measure = linear_probe if probe else fine_tune
        return measure(model, evaluation, precision=precision, group=group, on_progress=on_progress)
    if isinstance(model, ClassifierModel):
        return accuracy(model, evaluation, precision=precision, group=group, on_progress=on_progress)
    assert tokenizer is not None
    assert isinstance(model, ImageTextModel)
    encoder = _Encoder(model, tokenizer, precision, group, on_progress)
    match evaluation.spec.type:
        case EvaluationType.ZERO_SHOT:
            return _zero_shot(encoder, evaluation)
        case _:
            return _retrieval(encoder, evaluation)


def example_predictions(
    model: AnyModel,
    evaluation: EvaluationSet,
    tokenizer: Tokenize | None,
    path: Path,
    *,
    precision: Precision = Precision.FP32,
    group: Group | None = None,
) -> None:
    """Write predictions.json: what the model says of 24 samples spread evenly over a set with classes, with
    thumbnails.

    All ranks call it; rank 0 writes. The format is `artifacts.Predictions`.
    """
    total = len(evaluation.source)
    count = min(EXAMPLES, total)
    group = group or Group()
    with _evaluating(model):
        classify_images = _classifier(model, evaluation, tokenizer, precision, group)
        if group.rank != 0:
            return
        batch = evaluation.source.samples([number * total // count for number in range(count)])
        assert batch.labels is not None
        probability_BM = classify_images(batch.images).softmax(dim=1).cpu()
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


def _classifier(
    model: AnyModel,
    evaluation: EvaluationSet,
    tokenizer: Tokenize | None,
    precision: Precision,
    group: Group,
) -> Callable[[Tensor], Tensor]:
    """Logits [B, M] of uint8 images. All ranks call it: each encodes some of the classes, where they are texts."""
    if isinstance(model, ClassifierModel):
        return lambda images: classify(model, images, precision=precision)
    assert tokenizer is not None
    assert isinstance(model, ImageTextModel)
    encoder = _Encoder(model, tokenizer, precision, group, lambda: None)
    class_ME = encoder.classes(evaluation)
    return lambda images: model.logit_scale.exp() * encoder.images(images) @ class_ME.T


class _Encoder:
    """Embeddings on the model's device, shared over ranks: each computes some batches, all have all."""

    def __init__(
        self,
        model: ImageTextModel[ImageTextConfig],
        tokenizer: Tokenize,
        precision: Precision,
        group: Group,
        on_progress: Callable[[], None],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.precision = precision
        self.group = group
        self.on_progress = on_progress
        self.device = model.logit_scale.device
        self.dtype = model.logit_scale.dtype
        self.size = model.config.embed_dim

    def images(self, images_u8_B3HW: Tensor) -> Tensor:
        """Unit embeddings [B, E]."""
        with self._autocast():
            return self.model.encode_image(normalize(images_u8_B3HW.to(self.device), self.dtype))

    def texts(self, tokens_MT: Tensor) -> Tensor:
        """Unit embeddings [M, E]; batches are spread over ranks."""
        text_ME = torch.zeros(tokens_MT.shape[0], self.size, dtype=self.dtype, device=self.device)
        for number, start in enumerate(range(0, tokens_MT.shape[0], TEXT_BATCH)):
            if number % self.group.world_size == self.group.rank:
                tokens_BT = crop_tokens(tokens_MT[start : start + TEXT_BATCH]).to(self.device)
                with self._autocast():
                    text_ME[start : start + TEXT_BATCH] = self.model.encode_text(tokens_BT)
                self.on_progress()
        return self.group.sum(text_ME)

    def classes(self, evaluation: EvaluationSet) -> Tensor:
        """Unit embeddings [M, E] of classes: the mean over templates of unit embeddings of the prompts."""
        templates = evaluation.spec.templates or DEFAULT_TEMPLATES
        prompts = [t.replace("{}", name) for name in evaluation.classes for t in templates]
        prompt_ME = self.texts(self.tokenizer(prompts))
        return functional.normalize(prompt_ME.unflatten(0, (-1, len(templates))).mean(dim=1), dim=-1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision is Precision.BF16)


def _zero_shot(encoder: _Encoder, evaluation: EvaluationSet) -> dict[str, float]:
    classes = len(evaluation.classes)
    class_ME = encoder.classes(evaluation)

    def answers(batch: EvaluationBatch) -> Tensor:
        assert batch.labels is not None
        return batch.labels[:, None]

    image_nE, label_n1 = _embed(encoder, evaluation, answers, width=1)
    labels = label_n1[:, 0]
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise UserDataError(
            f"evaluation set {evaluation.spec.name}: labels run from {int(labels.min())} to "
            f"{int(labels.max())}, but classes from 0 to {classes - 1}; check its classes and data.classKey"
        )
    ks = (1, 5) if classes >= TOP_FIVE_CLASSES else (1,)
    pairs_P2 = torch.stack([torch.arange(len(labels), device=labels.device), labels], dim=1)
    hits = _hits(image_nE, class_ME, pairs_P2, ks, encoder.group)
    return {f"top{k}": share for k, share in zip(ks, hits, strict=True)}


def _retrieval(encoder: _Encoder, evaluation: EvaluationSet) -> dict[str, float]:
    def answers(batch: EvaluationBatch) -> Tensor:
        assert batch.captions is not None
        tokens = encoder.tokenizer([caption for captions in batch.captions for caption in captions])
        return tokens.reshape(len(batch.captions), -1)

    context = encoder.model.config.text_length
    image_nE, tokens_nCT = _embed(encoder, evaluation, answers, width=evaluation.captions * context)
    tokens_nCT = tokens_nCT.unflatten(1, (-1, context)).cpu()
    # Captions that read the same are one candidate: which of them is found says nothing.
    distinct_MT, text_of_nC = torch.unique(tokens_nCT.flatten(0, 1), dim=0, return_inverse=True)
    text_of_nC = text_of_nC.view(tokens_nCT.shape[:2]).to(encoder.device)
    text_ME = encoder.texts(distinct_MT)

    n, captions = text_of_nC.shape
    image_of_P = torch.arange(n, device=encoder.device).repeat_interleave(captions)
    pairs_P2 = torch.stack([image_of_P, text_of_nC.flatten()], dim=1)
    to_text = _hits(image_nE, text_ME, pairs_P2, RECALL_AT, encoder.group)
    to_image = _hits(text_ME, image_nE, pairs_P2.flip(1), RECALL_AT, encoder.group)
    scale = encoder.model.logit_scale.exp()
    losses = [_loss(image_nE * scale, text_ME[text_of_nC[:, c]], encoder.group) for c in range(captions)]
    return {
        "loss": sum(losses) / captions,
        **{f"imageToText@{k}": share for k, share in zip(RECALL_AT, to_text, strict=True)},
        **{f"textToImage@{k}": share for k, share in zip(RECALL_AT, to_image, strict=True)},
    }


def _embed(
    encoder: _Encoder, evaluation: EvaluationSet, answers: Callable[[EvaluationBatch], Tensor], *, width: int
) -> tuple[Tensor, Tensor]:
    """Embeddings [n, E] of the set's readable images and the answer to each, int64 [n, width], on every rank.

    Each rank fills its rows of a table of zeros, and the sum of all ranks' tables is the table.
    """
    group, samples = encoder.group, len(evaluation.source)
    image_nE = torch.zeros(samples, encoder.size, dtype=encoder.dtype, device=encoder.device)
    answer_nA = torch.zeros(samples, width, dtype=torch.int32, device=encoder.device)
    readable_n = torch.zeros(samples, dtype=torch.int32, device=encoder.device)
    for batch in evaluation.source.batches(group.rank, group.world_size):
        encoder.on_progress()
        if not len(batch.indices):
            continue
        rows_B = batch.indices.to(encoder.device)
        image_nE[rows_B] = encoder.images(batch.images)
        answer_nA[rows_B] = answers(batch).to(encoder.device, torch.int32)
        readable_n[rows_B] = 1
    readable_n = group.sum(readable_n).bool()
    if not bool(readable_n.any()):
        raise UserDataError(
            f"evaluation set {evaluation.spec.name}: none of its {samples} samples can be read; "
            "check its shards and keys"
        )
    return group.sum(image_nE)[readable_n], group.sum(answer_nA)[readable_n].long()


def _hits(
    rows_RE: Tensor, columns_ME: Tensor, pairs_P2: Tensor, ks: Sequence[int], group: Group
) -> list[float]:
    """For each k the share of rows that have one of their columns among the k of highest score.

    `pairs_P2` lists which columns belong to a row. Where other columns score exactly as high as a row's best
    own one, the row counts with the chance of a random order, so that a model that says the same of
    everything gets no credit.
    """
    hits_RK = torch.zeros(rows_RE.shape[0], len(ks), dtype=torch.float64, device=rows_RE.device)
    for start, end in _row_chunks(rows_RE.shape[0], columns_ME.shape[0], group):
        with full_precision(rows_RE.device):
            score_rM = rows_RE[start:end] @ columns_ME.T
        own_rM = torch.zeros_like(score_rM, dtype=torch.bool)
        mine_P = (pairs_P2[:, 0] >= start) & (pairs_P2[:, 0] < end)
        own_rM[pairs_P2[mine_P, 0] - start, pairs_P2[mine_P, 1]] = True
        best_r1 = score_rM.masked_fill(~own_rM, -torch.inf).amax(dim=1, keepdim=True)
        equal_r1 = ((score_rM == best_r1) & ~own_rM).sum(dim=1, keepdim=True)
        # Not "greater": a model that says NaN must not be right.
        better_r1 = (~(score_rM < best_r1) & ~own_rM).sum(dim=1, keepdim=True) - equal_r1
        places_K = torch.tensor(ks, dtype=torch.float64, device=rows_RE.device)
        hits_RK[start:end] = ((places_K - better_r1) / (equal_r1 + 1)).clamp(0, 1)
    return group.sum(hits_RK).mean(dim=0).tolist()


def _loss(scaled_nE: Tensor, text_nE: Tensor, group: Group) -> float:
    """Symmetric contrastive loss of n pairs, n x n logits in chunks."""
    loss_n = torch.zeros(scaled_nE.shape[0], dtype=torch.float64, device=scaled_nE.device)
    for start, end in _row_chunks(scaled_nE.shape[0], scaled_nE.shape[0], group):
        for rows_nE, columns_nE in ((scaled_nE, text_nE), (text_nE, scaled_nE)):
            with full_precision(rows_nE.device):
                logits_rn = rows_nE[start:end] @ columns_nE.T
            loss_n[start:end] += (logits_rn.logsumexp(dim=1) - logits_rn.diagonal(start)) / 2
    return group.sum(loss_n).mean().item()


def _row_chunks(rows: int, columns: int, group: Group) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK_ELEMENTS // columns)
    for number, start in enumerate(range(0, rows, size)):
        if number % group.world_size == group.rank:
            yield start, min(start + size, rows)


def _thumbnail(picture_3HW: Tensor) -> str:
    """The picture as PNG in base64, no side longer than THUMBNAIL_SIDE."""
    image = Image.fromarray(picture_3HW.permute(1, 2, 0).contiguous().cpu().numpy())
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


@contextmanager
def _evaluating(model: AnyModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
