"""A training step against the definition of its loss, and against itself: split up, on two processes,
resumed.

Run as a script this file is one of the processes: `test_step.py RANK WORLD_SIZE PORT FOLDER`.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modelchain import cost
from modelchain.families import LockedTower, ModelConfig, TextSpec, VisionSpec
from modelchain.memory import kept_bytes
from modelchain.resolved import (
    ChainReference,
    ResolvedData,
    ResolvedDistillation,
    ResolvedStage,
    ResolvedStore,
    ResolvedTraining,
    StageReference,
)
from modelchain.spec import DistillationSchedule, DistillationScheduleType, Precision
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.distillation import build_projections
from modelchain_trainer.distributed import collectives
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.environment import free_port
from modelchain_trainer.model.build import build_model
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.step import MOST_SKIPPED_STEPS, DivergedError, Teaching, TrainStep
from modelchain_trainer.tasks import contrastive
from modelchain_trainer.train_state import lock

CPU = torch.device("cpu")
IMAGE_SIZE, CONTEXT, CAPTIONS, BATCH = 16, 12, 2, 12
WEIGHT = 1.5
STEPS = 3
TOWERS = ("encode_image", "encode_texts")
TWO_PROCESS_CASES = {"fp64": torch.float64, "fp32": torch.float32}

pair = pytest.mark.xdist_group("step-2")  # one worker of the test run starts the two processes, once


@dataclass(frozen=True)
class Rows:
    images: Tensor
    tokens: Tensor
    patches: Tensor | None = None


def config(width: int, embed_dim: int, image_size: int = IMAGE_SIZE, *, causal: bool = True) -> ModelConfig:
    return ModelConfig(
        embed_dim=embed_dim,
        vision=VisionSpec(image_size=image_size, patch_size=8, width=width, layers=2, head_width=16),
        text=TextSpec(
            context_length=CONTEXT, vocab_size=49408, width=width, layers=2, heads=2, causal=causal
        ),
    )


def stage(*, distillation: ResolvedDistillation | None = None, **training: object) -> ResolvedStage:
    block = ResolvedTraining.model_validate(
        {
            "epochs": 1,
            "global_batch_size": BATCH,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "checkpoint_every_steps": 10,
            "steps_per_epoch": 20,
            "steps": 20,
            **training,
        }
    )
    return ResolvedStage(
        chain=ChainReference(namespace="default", name="test", uid="1"),
        name="second",
        index=1,
        digest="0" * 64,
        folder="stages/second-0",
        model="second",
        modelConfig=config(32, 24),
        store=ResolvedStore(uri="store"),
        data=ResolvedData(shards=("a.tar",), samples=240),
        training=block,
        distillation=distillation or ResolvedDistillation(weight=WEIGHT),
    )


def batch(step: int, rank: int = 0, world_size: int = 1) -> Rows:
    """This rank's rows of the global batch of a step; captions differ in length."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (BATCH, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator, dtype=torch.uint8)
    tokens = torch.zeros(CAPTIONS, BATCH, CONTEXT, dtype=torch.int64)
    for row in tokens.view(-1, CONTEXT):
        length = int(torch.randint(3, CONTEXT - 2, (), generator=generator))
        row[:length] = torch.randint(1, 49000, (length,), generator=generator)
        row[0], row[length] = 49406, 49407
    b = BATCH // world_size
    return Rows(images[rank * b : (rank + 1) * b], tokens[:, rank * b : (rank + 1) * b])


def train_step(
    made_for: ResolvedStage,
    *,
    dtype: torch.dtype = torch.float32,
    teacher: Clip | None = None,
    teacher_size: int = 16,
    group: Group | None = None,
    teaching: Teaching | None = None,
    sharded: bool = False,
) -> tuple[TrainStep, Clip, dict[str, torch.nn.Parameter]]:
    """A step on a new model, and all its parameters by name. `teacher_size` 0: no teacher."""
    model = build_model(config(32, 24), seed=1).to(dtype)
    if teacher is None and teacher_size:
        teacher = build_model(config(32, teacher_size), seed=2).to(dtype)
    projections = build_projections(24, teacher_size) if teacher_size else None
    named = dict(model.named_parameters())
    if projections is not None:
        projections.to(dtype)
        named |= {f"projections.{name}": parameter for name, parameter in projections.named_parameters()}
    lock(model, made_for)
    trained = [(name, parameter) for name, parameter in named.items() if parameter.requires_grad]
    optimizer = AdamW(trained, made_for.training, group, sharded=sharded)
    return TrainStep(model, teacher, projections, optimizer, made_for, CPU, group, teaching), model, named


def gradients(named: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}


def relative_error(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest error of a tensor relative to its own norm; biases of keys have no gradient but rounding."""
    assert mine.keys() == theirs.keys()
    largest = max(float(tensor.norm()) for tensor in theirs.values())
    return max(
        float((mine[name].double() - tensor.double()).norm()) / max(float(tensor.norm()), 1e-3 * largest)
        for name, tensor in theirs.items()
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_loss_and_gradients_are_those_of_the_definition() -> None:
    trained, model, named = train_step(stage(), dtype=torch.float64)
    teacher = build_model(config(32, 16), seed=2).double()
    rows = batch(0)
    images = normalize(rows.images, torch.float64)
    projections = [named["projections.image"], named["projections.text"]]
    for parameter in named.values():
        parameter.grad = None

    image = model.encode_image(images)
    labels = torch.arange(BATCH)
    task = torch.zeros((), dtype=torch.float64)
    distance = (
        (functional.linear(image, projections[0]) - teacher.encode_image(images)).square().sum(-1).mean()
    )
    for tokens in rows.tokens:
        text = model.encode_text(tokens)
        logits = model.logit_scale.exp() * image @ text.T
        task = (
            task
            + functional.cross_entropy(logits, labels) / 2
            + functional.cross_entropy(logits.T, labels) / 2
        )
        difference = functional.linear(text, projections[1]) - teacher.encode_text(tokens)
        distance = distance + difference.square().sum(-1).mean() / CAPTIONS
    (task / CAPTIONS + WEIGHT * distance).backward()
    expected = gradients(named)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected.values()))

    reading = trained.run(rows, 0).read()
    assert reading.loss["task"] == pytest.approx(task.item() / CAPTIONS, rel=1e-12)
    assert reading.loss["distillation"] == pytest.approx(WEIGHT * distance.item(), rel=1e-12)
    assert reading.loss["total"] == pytest.approx(reading.loss["task"] + reading.loss["distillation"])
    assert reading.gradient_norm == pytest.approx(norm, rel=1e-10)
    assert relative_error(gradients(named), expected) < 1e-10


@pytest.mark.parametrize("size", [3, 5])
def test_micro_batches_give_the_gradient_of_the_whole_batch(size: int) -> None:
    whole, _, whole_named = train_step(stage(), dtype=torch.float64)
    split, _, split_named = train_step(stage(micro_batch_size=size), dtype=torch.float64)
    for step in range(2):
        expected, found = whole.run(batch(step), step).read(), split.run(batch(step), step).read()
        assert found.loss == pytest.approx(expected.loss, rel=1e-10)
        assert relative_error(gradients(split_named), gradients(whole_named)) < 1e-10


@pytest.mark.parametrize("size", [None, 5])
def test_the_student_learns_from_the_patches_that_are_kept_and_its_teacher_from_all(size: int | None) -> None:
    rows, kept = batch(0), torch.tensor([[0, 3], [1, 2], [2, 3]] * 4)
    trained, model, named = train_step(stage(micro_batch_size=size), dtype=torch.float64)
    dropped, _, dropped_named = train_step(stage(micro_batch_size=size), dtype=torch.float64)
    images = normalize(rows.images, torch.float64)
    patches = model.visual.conv1(images) + model.visual.positional_embedding[1:]
    first = (model.visual.class_embedding + model.visual.positional_embedding[0]).expand(BATCH, 1, -1)
    seen = torch.stack([patches[row, places] for row, places in enumerate(kept.tolist())])
    visual = model.visual
    pooled = visual.transformer(visual.ln_pre(torch.cat([first, seen], dim=1)), None)
    expected = functional.normalize(visual.ln_post(pooled) @ visual.proj, dim=-1)
    assert torch.equal(model.encode_image(images, kept_BK=kept), expected)

    every = Rows(rows.images, rows.tokens, torch.arange(4).expand(BATCH, -1))
    assert dropped.run(every, 0).read() == trained.run(rows, 0).read()  # none is dropped
    assert relative_error(gradients(dropped_named), gradients(named)) == 0
    teacher = build_model(config(32, 24), seed=1)
    alike, _, _ = train_step(stage(), teacher=teacher, teacher_size=24)
    losses = alike.run(Rows(rows.images, rows.tokens, kept), 0).read().loss
    assert losses["distillation"] > 1e-3  # the student, equal to its teacher, does not see what that one does


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes of half the batch each have trained; what they saw lies in this folder."""
    folder = tmp_path_factory.mktemp("two")
    port = str(free_port())
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", port, str(folder)]) for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    return folder


def train_and_record(folder: Path, case: str, group: Group) -> None:
    """A few steps; writes losses, gradients and final weights. Micro-batches on two processes, none on
    one."""
    micro_batch_size = None if group.world_size == 1 else 4
    trained, _, named = train_step(
        stage(micro_batch_size=micro_batch_size), dtype=TWO_PROCESS_CASES[case], group=group
    )
    record: dict[str, Tensor] = {}
    for step in range(STEPS):
        reading = trained.run(batch(step, group.rank, group.world_size), step).read()
        figures = [*reading.loss.values(), reading.gradient_norm, reading.logit_scale]
        record[f"figures.{step}"] = torch.tensor(figures, dtype=torch.float64)
        record |= {f"gradient.{step}.{name}": gradient for name, gradient in gradients(named).items()}
    record |= {f"weight.{name}": parameter.detach().clone() for name, parameter in named.items()}
    save_file(record, folder / f"{case}-{group.rank}.safetensors")


@pytest.mark.slow
@pair
@pytest.mark.parametrize(("case", "tolerance"), [("fp64", 1e-10), ("fp32", 1e-5)])
def test_two_processes_of_half_the_batch_train_as_one_of_the_whole(
    two_processes: Path, tmp_path: Path, case: str, tolerance: float
) -> None:
    train_and_record(tmp_path, case, Group())
    expected = load_file(tmp_path / f"{case}-0.safetensors")
    for rank in range(2):
        found = load_file(two_processes / f"{case}-{rank}.safetensors")
        for step in range(STEPS):
            torch.testing.assert_close(
                found[f"figures.{step}"], expected[f"figures.{step}"], rtol=tolerance, atol=0
            )
        first = {name: tensor for name, tensor in expected.items() if name.startswith("gradient.0.")}
        assert relative_error({name: found[name] for name in first}, first) < tolerance
        if case == "fp64":  # fp32's rounding grows through AdamW's division by tiny second moments
            assert relative_error(found, expected) < 1e-7


@pytest.mark.slow
@pair
def test_two_processes_end_with_the_same_weights_bit_for_bit(two_processes: Path) -> None:
    one, other = (load_file(two_processes / f"fp32-{rank}.safetensors") for rank in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def shards_bit_for_bit(group: Group) -> list[str]:
    """What of a sharded optimizer is not as without sharding: weights, the state, or what goes on from it."""
    made_for = stage(gradient_clip_norm=1.0, ema_decay=0.9)
    plain, _, named = train_step(made_for, group=group)
    sharded, sharded_model, sharded_named = train_step(made_for, group=group, sharded=True)
    rows = [batch(step, group.rank, group.world_size) for step in range(4)]

    def differ(others: dict[str, torch.nn.Parameter]) -> bool:
        return not all(torch.equal(parameter, others[name]) for name, parameter in named.items())

    for step in (0, 1):
        plain.run(rows[step], step)
        sharded.run(rows[step], step)
    wrong = ["weights"] if differ(sharded_named) else []
    expected, state = plain.state_dict(), sharded.state_dict()
    moments = sum(".mean." in name for name in state)
    if group.rank == 0:
        same = state.keys() == expected.keys() and all(torch.equal(state[n], expected[n]) for n in state)
        wrong += [] if same else ["state"]
    elif moments:
        wrong.append("moments of others")
    again, again_model, again_named = train_step(made_for, group=group, sharded=True)
    again_model.load_state_dict(sharded_model.state_dict())
    again.load_from_first(state if group.rank == 0 else None)
    for step in (2, 3):
        again.run(rows[step], step)
        plain.run(rows[step], step)
    return wrong + (["resumed"] if differ(again_named) else [])


def kept_and_calculated(group: Group) -> list[int]:
    """Bytes of weights, gradients, moments and averages on this rank, and what `modelchain.memory` says."""
    made_for = stage(sharding="Optimizer", ema_decay=0.9)
    trained, model, named = train_step(made_for, teacher_size=0, group=group, sharded=True)
    trained.run(batch(0, group.rank, group.world_size), 0)
    tensors = [*model.parameters(), *gradients(named).values(), *trained.published.parameters()]
    tensors += [t for name, t in trained.optimizer.own_state().items() if name != "steps"]
    kept = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return [kept, kept_bytes(made_for, ranks=group.world_size, gpu_bytes=1)]


def resumes_bit_for_bit(group: Group) -> bool:
    """Whether the steps after a resume read, and leave weights, as those that were never interrupted."""
    straight, model, named = train_step(stage(), group=group)
    rows = [batch(step, group.rank, group.world_size) for step in range(4)]
    for step in (0, 1):
        straight.run(rows[step], step)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    resumed, other, other_named = train_step(stage(), group=group)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    same_readings = [
        straight.run(rows[step], step).read() == resumed.run(rows[step], step).read() for step in (2, 3)
    ]
    same_weights = [torch.equal(parameter, other_named[name]) for name, parameter in named.items()]
    return all(same_readings) and all(same_weights)


@pytest.mark.slow
@pair
def test_two_processes_resume_bit_for_bit(two_processes: Path) -> None:
    assert [(two_processes / f"resumed-{rank}").read_text() for rank in range(2)] == ["True", "True"]


@pytest.mark.slow
@pair
def test_a_sharded_optimizer_trains_the_same_weights_and_has_the_same_state(two_processes: Path) -> None:
    assert [(two_processes / f"sharded-{rank}").read_text() for rank in range(2)] == ["", ""]


@pytest.mark.slow
@pair
def test_no_rank_keeps_more_than_is_calculated(two_processes: Path) -> None:
    texts = [(two_processes / f"kept-{rank}").read_text() for rank in range(2)]
    (largest, calculated), (least, _) = sorted(
        ([int(number) for number in text.split()] for text in texts), reverse=True
    )
    assert 0.95 * calculated < largest <= calculated
    assert least < 0.7 * calculated  # one parameter is most of this model, and one rank has its moments


@pytest.mark.slow
@pair
def test_training_never_imports_the_compiler(two_processes: Path) -> None:
    assert (two_processes / "imported").read_text() == ""  # each takes seconds


def test_a_resumed_step_continues_bit_for_bit() -> None:
    assert resumes_bit_for_bit(Group())


def test_projections_are_trained_and_kept_in_the_state() -> None:
    trained, _, named = train_step(stage())
    before = named["projections.image"].detach().clone()
    trained.run(batch(0), 0)
    assert not torch.equal(named["projections.image"], before)
    assert torch.equal(trained.state_dict()["projections.image"], named["projections.image"])


def test_the_teacher_runs_only_while_the_weight_is_above_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = build_model(config(32, 24), seed=2)
    calls: list[int] = []
    encode = teacher.encode_image
    monkeypatch.setattr(
        teacher, "encode_image", lambda images, **kept: (calls.append(len(images)), encode(images, **kept))[1]
    )
    schedule = DistillationSchedule(type=DistillationScheduleType.LINEAR, until=0.1)  # two of twenty steps
    falling = stage(distillation=ResolvedDistillation(weight=1.0, schedule=schedule))
    trained, _, _ = train_step(falling, teacher=teacher, teacher_size=24)
    readings = [trained.run(batch(step), step).read() for step in range(4)]
    assert len(calls) == 2
    assert [reading.distillation_weight for reading in readings] == [1.0, 0.5, 0.0, 0.0]
    assert [reading.loss["distillation"] > 0 for reading in readings] == [True, True, False, False]


def test_pixels_are_normalised_once_for_teacher_and_student(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(
        contrastive,
        "normalize",
        lambda images, dtype: (rows.append(len(images)), normalize(images, dtype))[1],
    )
    trained, _, _ = train_step(stage(micro_batch_size=BATCH))
    trained.run(batch(0), 0)
    assert rows == [BATCH]
    rows.clear()
    trained, _, _ = train_step(stage(micro_batch_size=BATCH // 3))
    trained.run(batch(0), 0)
    assert rows == [BATCH // 3] * 5, "all but the last are computed once more, with a graph"


@pytest.mark.parametrize("image_size", [IMAGE_SIZE // 2, IMAGE_SIZE * 2])
def test_a_teacher_of_another_image_size_sees_the_same_pictures_at_its_own(image_size: int) -> None:
    teacher = build_model(config(32, 24, image_size), seed=2)
    trained, _, _ = train_step(stage(), teacher=teacher, teacher_size=24)
    seen: list[Tensor] = []
    teacher.visual.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    assert trained.run(batch(0), 0).read().loss["distillation"] > 0
    expected = functional.interpolate(
        normalize(batch(0).images, torch.float32), (image_size, image_size), mode="bicubic", antialias=True
    )
    assert torch.equal(torch.cat(seen), expected)


@pytest.mark.parametrize(
    ("locked", "causal"), [(None, True), *((tower, True) for tower in LockedTower), (None, False)]
)
def test_the_macs_computed_are_those_that_torch_counts_in_the_forward_passes_of_the_step(
    locked: LockedTower | None, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[tuple[Clip, str], float] = {}

    def count(tower: str) -> None:
        encode = getattr(Clip, tower)

        def encode_and_count(model: Clip, *inputs: Tensor, **options: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                result: Tensor = encode(model, *inputs, **options)
            place = model, tower
            counted[place] = counted.get(place, 0) + counter.get_total_flops() / 2
            return result

        monkeypatch.setattr(Clip, tower, encode_and_count)

    count("encode_image")
    count("encode_texts")
    teacher = build_model(config(64, 16, IMAGE_SIZE * 2, causal=causal), seed=2)
    made_for = stage(locked_tower=locked, patch_dropout=0.25)
    taught_by = StageReference(
        name="first", digest="1" * 64, folder="stages/first-1", modelConfig=teacher.config
    )
    made_for = made_for.model_copy(update={"predecessor": taught_by, "teacher": taught_by})
    trained, model, _ = train_step(made_for, teacher=teacher)
    rows = batch(0)
    trained.run(Rows(rows.images, rows.tokens, torch.arange(3).expand(BATCH, 3)), 0)
    passes = {
        tower: 1 if locked is not None and tower.startswith(f"encode_{locked.lower()}") else 3
        for tower in TOWERS
    }
    student = sum(passes[tower] * counted[model, tower] for tower in TOWERS)
    assert trained.computed_macs == student + sum(counted[teacher, tower] for tower in TOWERS)
    taught_step = cost.stage_macs(made_for, until_step=1)
    if causal:
        assert trained.computed_macs < 0.8 * taught_step, "captions are at most nine of twelve tokens long"


def test_a_stage_without_predecessor_trains_on_the_task_alone() -> None:
    trained, _, _ = train_step(stage(), teacher_size=0)
    reading = trained.run(batch(0), 0).read()
    assert reading.loss["distillation"] == 0
    assert reading.distillation_weight == 0
    assert reading.loss["total"] == reading.loss["task"]


@pytest.mark.parametrize("precision", list(Precision))
def test_a_student_equal_to_its_teacher_is_at_distance_zero(precision: Precision) -> None:
    teacher = build_model(config(32, 24), seed=1)
    trained, _, _ = train_step(stage(precision=precision), teacher=teacher, teacher_size=24)
    assert trained.run(batch(0), 0).read().loss["distillation"] == 0


def test_bf16_keeps_weights_in_fp32_and_stays_close_to_fp32() -> None:
    exact, _, exact_named = train_step(stage())
    rounded, _, rounded_named = train_step(stage(precision=Precision.BF16))
    expected, found = exact.run(batch(0), 0).read(), rounded.run(batch(0), 0).read()
    assert found.loss == pytest.approx(expected.loss, rel=2e-2)
    assert found.loss != expected.loss
    assert all(parameter.dtype == torch.float32 for parameter in rounded_named.values())
    assert relative_error(gradients(rounded_named), gradients(exact_named)) < 0.5


def test_clipping_scales_the_gradient_and_reports_its_norm_before() -> None:
    plain, _, _ = train_step(stage())
    norm = plain.run(batch(0), 0).read().gradient_norm
    loose, _, loose_named = train_step(stage(gradient_clip_norm=norm * 2))
    tight, _, tight_named = train_step(stage(gradient_clip_norm=norm / 4))
    for step in (loose, tight):
        assert step.run(batch(0), 0).read().gradient_norm == pytest.approx(norm)
    mean = {name: tensor for name, tensor in loose.state_dict().items() if ".mean." in name}
    clipped = {name: tensor * 4 for name, tensor in tight.state_dict().items() if ".mean." in name}
    assert relative_error(clipped, mean) < 1e-5
    assert loose_named.keys() == tight_named.keys()


def test_a_step_that_is_not_finite_is_skipped_and_too_many_in_a_row_end_the_stage() -> None:
    trained, model, named = train_step(stage())
    trained.run(batch(0), 0)
    with torch.no_grad():
        good = model.visual.ln_post.bias[0].clone()
        model.visual.ln_post.bias[0] = float("inf")
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    for step in range(1, MOST_SKIPPED_STEPS + 1):
        reading = trained.run(batch(step), step).read()
        assert (reading.skipped, reading.skipped_steps) == (True, step)
    assert all(torch.equal(parameter, before[name]) for name, parameter in named.items())

    with torch.no_grad():
        model.visual.ln_post.bias[0] = good
    reading = trained.run(batch(4), 4).read()
    assert (reading.skipped, reading.skipped_steps) == (False, MOST_SKIPPED_STEPS)
    assert math.isfinite(reading.loss["total"])
    assert not torch.equal(named["text_projection"], before["text_projection"]), "it learns on"

    with torch.no_grad():
        model.visual.ln_post.bias[0] = float("inf")
    for step in range(5, 5 + MOST_SKIPPED_STEPS):
        trained.run(batch(step), step)
    with pytest.raises(DivergedError, match=r"not finite at step 5 nor .*: lower training\.learningRate"):
        trained.run(batch(8), 8)


def test_logit_scale_never_exceeds_one_hundred() -> None:
    trained, model, _ = train_step(stage(learning_rate=0.5))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100) + 1)
    reading = trained.run(batch(0), 0).read()
    assert reading.logit_scale == pytest.approx(100)
    assert model.logit_scale.item() == pytest.approx(math.log(100))


def test_training_learns_a_batch_by_heart() -> None:
    alone, _, _ = train_step(stage(learning_rate=5e-3), teacher_size=0)
    taught, _, _ = train_step(stage(learning_rate=5e-3))
    losses = [alone.run(batch(0), step).read().loss for step in range(15)]
    assert losses[-1]["task"] < losses[0]["task"] / 4
    losses = [taught.run(batch(0), step).read().loss for step in range(15)]
    assert losses[-1]["task"] < losses[0]["task"]
    assert losses[-1]["distillation"] < losses[0]["distillation"] / 2
    assert losses[-1]["total"] < losses[0]["total"] / 1.5


def main(rank: int, world_size: int, port: str, folder: Path) -> None:
    torch.set_num_threads(1)
    collectives.BUCKET_BYTES = 1 << 16  # many buckets, sent while the backward pass runs
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    for case in TWO_PROCESS_CASES:
        train_and_record(folder, case, Group.current())
    (folder / f"sharded-{rank}").write_text(",".join(shards_bit_for_bit(Group.current())))
    (folder / f"kept-{rank}").write_text(" ".join(map(str, kept_and_calculated(Group.current()))))
    (folder / f"resumed-{rank}").write_text(str(resumes_bit_for_bit(Group.current())))
    if rank == 0:
        (folder / "imported").write_text(
            ",".join(sys.modules.keys() & {"torch._dynamo", "sympy", "torchvision", "open_clip"})
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))


@pytest.mark.parametrize("tower", list(LockedTower))
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_locked_tower_stays_as_it_is_and_the_rest_learns_as_with_its_features(
    tower: LockedTower, micro_batch_size: int | None
) -> None:
    locked = stage(locked_tower=tower, micro_batch_size=micro_batch_size, ema_decay=0.9)
    step, _, named = train_step(locked, dtype=torch.float64)
    free, _, free_named = train_step(stage(), dtype=torch.float64)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    step.run(batch(0), 0)
    free.run(batch(0), 0)
    still = {name for name in named if torch.equal(named[name], before[name])}
    image = {name for name in named if name.startswith("visual.")}
    others = named.keys() - image - {"logit_scale"} - {name for name in named if "projections" in name}
    assert still >= (image if tower is LockedTower.IMAGE else others)
    for name in named.keys() - still:  # the same gradients as if all learnt, without clipping
        torch.testing.assert_close(named[name], free_named[name], rtol=1e-9, atol=1e-12, msg=name)
    assert (others if tower is LockedTower.IMAGE else image).isdisjoint(still)
    moments = {name.split(".", 2)[2] for name in step.state_dict() if name.startswith("optimizer.mean.")}
    assert moments == {name for name in named if named[name].requires_grad}
    published = dict(step.published.named_parameters())
    assert all(torch.equal(published[name], before[name]) for name in still & published.keys())


def test_a_step_with_a_locked_tower_goes_on_from_what_it_saved() -> None:
    locked = stage(locked_tower=LockedTower.IMAGE)
    step, model, named = train_step(locked)
    step.run(batch(0), 0)
    state = {name: tensor.clone() for name, tensor in step.state_dict().items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step.run(batch(1), 1)
    again, other, others_named = train_step(locked)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    again.run(batch(1), 1)
    assert all(torch.equal(named[name], others_named[name]) for name in named)
