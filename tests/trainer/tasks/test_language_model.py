"""A step of LanguageModel against the definition of its loss, and whole stages on repeated words."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modelchain.errors import UserDataError
from modelchain.families import LANGUAGE_MODEL, LanguageModelConfig
from modelchain.resolved import ResolvedDistillation, ResolvedExpansion, ResolvedStage
from modelchain.spec import Sharding
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.expansion import expand
from modelchain_trainer.model import build_model, load_weights, model_from
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.position import Position
from modelchain_trainer.step import TrainStep
from modelchain_trainer.tasks import language_model as task_module
from modelchain_trainer.tasks import task_of
from tests.trainer.expansion.families import language_model
from tests.trainer.tasks.whole_stages import check_a_kill_changes_no_bit, published
from tests.trainer.test_step import Rows, gradients, relative_error
from tests.trainer.test_step import stage as clip_stage

StageOf = Callable[..., ResolvedStage]

BATCH, CONTEXT, WEIGHT, LOGITS = 6, 12, 1.5, 0.7
STUDENT, TEACHER = language_model(width=32), language_model(width=16)


def stage(config: LanguageModelConfig = STUDENT, **training: object) -> ResolvedStage:
    distillation = ResolvedDistillation(weight=WEIGHT, logits_weight=LOGITS)
    made = clip_stage(distillation=distillation, global_batch_size=BATCH, **training)
    return made.model_copy(update={"task": "LanguageModel", "model_config_": config})


def batch(seed: int = 0) -> Rows:
    """Sequences of documents of five tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(STUDENT.vocabulary_size, (BATCH, CONTEXT + 1), generator=generator)
    positions = (torch.arange(CONTEXT + 1) % 5).expand(BATCH, -1)
    return Rows(torch.empty(BATCH, 0, 0, 0, dtype=torch.uint8), torch.stack([tokens, positions]))


def train_step(
    made_for: ResolvedStage, group: Group | None = None, model: torch.nn.Module | None = None
) -> tuple[TrainStep, dict[str, torch.nn.Parameter]]:
    config = made_for.model_config_
    student = build_model(STUDENT, seed=1).double() if model is None else model
    teacher = build_model(TEACHER, seed=2).double()
    projections = task_of(made_for).projections(config, TEACHER)
    assert projections is not None
    projections.double()
    named = dict(student.named_parameters())
    named |= {f"projections.{name}": parameter for name, parameter in projections.named_parameters()}
    optimizer = AdamW(named.items(), made_for.training)
    return TrainStep(student, teacher, projections, optimizer, made_for, torch.device("cpu"), group), named  # pyright: ignore[reportArgumentType]


def test_loss_and_gradients_are_those_of_the_definition() -> None:
    trained, named = train_step(stage())
    model, teacher = build_model(STUDENT, seed=1).double(), build_model(TEACHER, seed=2).double()
    projection = named["projections.features"].detach().clone().requires_grad_()
    tokens, positions = batch().tokens
    features, target = model(tokens[:, :-1], positions[:, :-1]), tokens[:, 1:].flatten()
    logits = model.logits(features)
    with torch.no_grad():
        taught_features = teacher(tokens[:, :-1], positions[:, :-1])
        taught_logits = teacher.logits(taught_features)
    task = functional.cross_entropy(logits.flatten(0, 1), target)
    mine = functional.normalize(features @ projection.T, dim=-1)
    distance = (mine - functional.normalize(taught_features, dim=-1)).square().sum(-1).mean()
    probabilities = taught_logits.softmax(-1)
    divergence = (probabilities * (taught_logits.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean()
    distillation = WEIGHT * (distance + LOGITS * divergence)
    (task + distillation).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert projection.grad is not None
    expected["projections.features"] = projection.grad

    reading = trained.run(batch(), 0).read()
    assert reading.loss["task"] == pytest.approx(task.item(), rel=1e-12)
    assert reading.loss["distillation"] == pytest.approx(distillation.item(), rel=1e-12)
    assert relative_error(gradients(named), expected) < 1e-10


@pytest.mark.parametrize(("size", "logits"), [(2, 2**27), (4, 2**27), (None, 23 * 10)])
def test_parts_of_the_batch_and_of_its_logits_give_the_gradient_of_the_whole(
    size: int | None, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, whole_named = train_step(stage())
    expected = whole.run(batch(), 0).read()
    monkeypatch.setattr(task_module, "LOGITS_AT_ONCE", logits)
    split, split_named = train_step(stage(micro_batch_size=size))
    found = split.run(batch(), 0).read()
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert relative_error(gradients(split_named), gradients(whole_named)) < 1e-10


@pytest.mark.parametrize("width", ["Exact", "Padded"])
def test_a_grown_student_begins_at_its_teachers_features_and_probabilities(width: str) -> None:
    for size in (32, 40, 48):
        student = language_model(width=size, layers=3)
        teacher = build_model(TEACHER, seed=2).double()
        how = ResolvedExpansion.model_validate({"width": width})
        model = model_from(expand(teacher.state_dict(), TEACHER, student, how, seed=0), student)
        trained, _ = train_step(stage(student), model=model)
        assert trained.run(batch(), 0).read().loss["distillation"] < 1e-9


WORDS = ("round and round it goes", "up and down it goes", "here it comes and there it goes")


@pytest.fixture
def language_stage(stage_of: StageOf, tmp_path: Path) -> StageOf:
    """A stage on documents that repeat themselves."""
    texts = [WORDS[number % 3] for number in range(96)]
    shard = tmp_path / "words.tar"
    with tarfile.open(shard, "w") as archive:
        for number, text in enumerate(texts):
            member = tarfile.TarInfo(f"{number:03d}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    tokens = sum(len(text) + 1 for text in texts)

    def make(name: str, *, width: int = 32, tokens: int = tokens, **changes: Any) -> ResolvedStage:
        document = json.loads(stage_of(name, epochs=3, **changes).to_json())
        model = {
            "contextLength": 32,
            "vocabularySize": 257,
            "width": width,
            "layers": 2,
            "heads": width // 16,
        }
        steps_per_epoch = tokens // 32 // 8
        document |= {"task": "LanguageModel", "modelConfig": model}
        document["data"] = {"shards": [str(shard)], "samples": tokens // 32, "tokens": tokens}
        document["evaluation"] = [{"name": "words", "type": "Perplexity", "data": {"shards": [str(shard)]}}]
        document["training"] |= {
            "globalBatchSize": 8,
            "learningRate": 5e-3,
            "stepsPerEpoch": steps_per_epoch,
            "steps": 3 * steps_per_epoch,
        }
        return ResolvedStage.model_validate(document)

    return make


def lines_of(stage: ResolvedStage, kind: str) -> list[dict[str, Any]]:
    lines = [
        json.loads(line)
        for path in sorted(published(stage).glob("metrics-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [line for line in lines if line["kind"] == kind]


def test_a_chain_learns_its_documents_and_publishes_what_it_has_measured(
    language_stage: StageOf, train: Callable[..., Position]
) -> None:
    small = language_stage("small")
    train(small)
    large = language_stage("large", width=48, predecessor=small)
    train(large, "uid-2-nonce")
    before, after = lines_of(small, "evaluation"), lines_of(large, "evaluation")
    assert before[0]["metrics"]["words/perplexity"] == pytest.approx(257, rel=0.1), (
        "nothing is known at first"
    )
    assert after[0]["metrics"] == pytest.approx(before[-1]["metrics"], rel=1e-4), "growth keeps the function"
    assert after[-1]["metrics"]["words/perplexity"] < before[-1]["metrics"]["words/perplexity"] < 40
    assert after[-1]["metrics"].keys() == {"words/loss", "words/perplexity"}
    trained = lines_of(large, "train")
    assert trained[0]["loss"]["distillation"] < 1e-6 < trained[-1]["loss"]["distillation"]
    state, config = load_weights(published(large), LANGUAGE_MODEL)
    assert config == large.model_config_
    assert isinstance(state["token_embedding.weight"], Tensor)
    assert not (published(large) / "predictions.json").exists()
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(published(large))
    text = "goes round: déjà vu ☃<|endoftext|>"
    assert tokenizer(text).input_ids == [*text.removesuffix("<|endoftext|>").encode(), 256]
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token_id == 256


def test_other_tokens_than_the_chain_says_end_the_stage_with_what_to_write(
    language_stage: StageOf, train: Callable[..., Position]
) -> None:
    with pytest.raises(UserDataError, match="write tokens: "):
        train(language_stage("wrong", tokens=2000))


@pytest.mark.slow
def test_a_model_in_parts_learns_what_a_whole_one_does(
    language_stage: StageOf, fork_server: Any, tmp_path: Path
) -> None:
    """By FSDP; the table of tokens is read after the forward pass, for the logits."""
    small = language_stage("small")
    assert fork_server.run(small, tmp_path / "small", ranks=2) == 0
    found = []
    for name, sharding in (("whole", "None"), ("parts", "Full")):
        made = language_stage(name, width=48, predecessor=small)
        made = made.model_copy(
            update={"training": made.training.model_copy(update={"sharding": Sharding(sharding)})}
        )
        assert fork_server.run(made, tmp_path / name, ranks=2) == 0
        found.append(load_weights(published(made), LANGUAGE_MODEL)[0])
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_attempt_that_is_killed_goes_on_with_the_same_bits(
    language_stage: StageOf, fork_server: Any, tmp_path: Path
) -> None:
    check_a_kill_changes_no_bit(language_stage("calm"), fork_server, tmp_path)
