"""Models in parts on three ranks (none divides their rows) against whole ones in one process.

Run as a script this file is one of the ranks: `test_sharding.py RANK WORLD_SIZE PORT FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelchain.memory import kept_bytes
from modelchain.resolved import ResolvedStage
from modelchain.spec import Precision, Sharding
from modelchain_trainer.distillation import build_projections
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.distributed.sharding import own_part, sharded_model
from modelchain_trainer.environment import free_port
from modelchain_trainer.model.build import build_model
from modelchain_trainer.model.families import AnyModel
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.step import TrainStep, freeze
from modelchain_trainer.train_state import compiled_or_not
from tests.trainer.test_step import CPU, batch, config, relative_error, stage

RANKS, STEPS, SAVED_AT = 3, 4, 2
CASES: dict[str, dict[str, Any]] = {
    # Two micro-batches a rank: features first, then a second forward pass for the first of them.
    "plain": {"gradient_clip_norm": 1.0, "ema_decay": 0.9, "micro_batch_size": 2},
    "checkpointed": {"gradient_checkpointing": True},
    "bf16": {"precision": Precision.BF16},
}


def made_for(case: str) -> ResolvedStage:
    return stage(sharding=Sharding.FULL, **CASES[case])


def step_of(case: str, group: Group, weights: dict[str, Tensor] | None = None) -> TrainStep:
    """The student (with rank 0's `weights`, else new) and a teacher of another embedding; in parts on several ranks."""
    dtype = torch.float32 if case == "bf16" else torch.float64
    made = made_for(case)

    def spread(whole: AnyModel, *, teaches: bool = False) -> AnyModel:
        if group.alone:
            return whole.to(dtype)
        return sharded_model(
            whole.config,
            whole.state_dict() if group.rank == 0 else None,
            device=CPU,
            group=group,
            dtype=dtype,
            prepare=(lambda one: freeze(one, made.training.precision)) if teaches else lambda _one: None,
        )

    student = build_model(config(32, 24), seed=1).to(dtype)
    if weights is not None:
        student.load_state_dict(weights)
    student = spread(student)
    student.set_gradient_checkpointing(made.training.gradient_checkpointing)
    teacher = spread(build_model(config(32, 16), seed=2), teaches=True)
    projections = build_projections(24, 16)
    assert projections is not None
    projections.to(dtype)
    named = dict(student.named_parameters())
    named |= {f"projections.{name}": parameter for name, parameter in projections.named_parameters()}
    optimizer = AdamW(named.items(), made.training, group)
    return TrainStep(student, teacher, projections, optimizer, made, CPU, group)


def train(trained: TrainStep, group: Group, steps: range) -> list[list[float]]:
    """Train, and return the figures of each step."""
    readings = [trained.run(batch(step, group.rank, group.world_size), step).read() for step in steps]
    return [[*one.loss.values(), one.gradient_norm, one.logit_scale or 0.0] for one in readings]


def state_of(trained: TrainStep) -> dict[str, Tensor]:
    """Weights, moments, projections and averages, whole; of parts nothing on other ranks than the first."""
    state = {f"model.{name}": tensor for name, tensor in trained.model_state().items()}
    return {name: tensor.clone() for name, tensor in (state | trained.state_dict()).items()}


def resumed(state: dict[str, Tensor], case: str, group: Group) -> TrainStep:
    """A step that goes on from rank 0's `state`."""
    weights = {name.removeprefix("model."): t for name, t in state.items() if name.startswith("model.")}
    again = step_of(case, group, weights if group.rank == 0 else None)
    again.load_from_first(state if group.rank == 0 else None)
    return again


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three ranks have trained every case; what they found lies in this folder."""
    folder, port = tmp_path_factory.mktemp("ranks"), str(free_port())
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(RANKS), port, str(folder)])
        for rank in range(RANKS)
    ]
    assert [process.wait(timeout=240) for process in started] == [0] * RANKS
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("case", "tolerance"), [("plain", 1e-10), ("checkpointed", 1e-10), ("bf16", 2e-2)])
def test_models_in_parts_train_as_whole_ones(ranks: Path, case: str, tolerance: float) -> None:
    alone = Group()
    trained = step_of(case, alone)
    figures = torch.tensor(train(trained, alone, range(STEPS)))
    found = json.loads((ranks / f"{case}.json").read_text())
    torch.testing.assert_close(torch.tensor(found["figures"]), figures, rtol=tolerance, atol=0)
    assert found["alike"], "the ranks disagree"
    if case != "bf16":
        state = load_file(ranks / f"{case}-{STEPS}.safetensors")
        assert relative_error(state, state_of(trained)) < 1e-7


@pytest.mark.slow
def test_the_same_number_of_ranks_goes_on_with_the_same_bits(ranks: Path) -> None:
    straight, again = (load_file(ranks / f"plain-{name}.safetensors") for name in (STEPS, "resumed"))
    assert straight.keys() == again.keys()
    assert [name for name, tensor in straight.items() if not torch.equal(tensor, again[name])] == []


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_same_numbers(ranks: Path) -> None:
    alone = Group()
    again = resumed(load_file(ranks / f"plain-{SAVED_AT}.safetensors"), "plain", alone)
    train(again, alone, range(SAVED_AT, STEPS))
    assert relative_error(load_file(ranks / f"plain-{STEPS}.safetensors"), state_of(again)) < 1e-7


def test_what_is_fully_sharded_is_not_compiled() -> None:
    asked = stage(compile=True)
    assert [compiled_or_not(asked, sharding).training.compile for sharding in Sharding] == [True, True, False]
    assert compiled_or_not(asked, Sharding.FULL) == stage(compile=False)


@pytest.mark.slow
def test_a_rank_keeps_its_part_of_everything_as_calculated(ranks: Path) -> None:
    kept = [int((ranks / f"kept-{rank}").read_text()) for rank in range(RANKS)]
    without_average = stage(sharding=Sharding.FULL)
    calculated = kept_bytes(without_average, ranks=RANKS, gpu_bytes=1) * 2  # of fp64
    assert max(kept) == pytest.approx(calculated, rel=5e-3)
    assert max(kept) < 1.01 * min(kept)


def kept(trained: TrainStep) -> int:
    """Bytes of weights, gradients and moments of the student on this rank, without its projections."""
    named = [(name, p) for name, p in trained.optimizer.named if not name.startswith("projections.")]
    tensors = [own_part(parameter) for _, parameter in named]
    tensors += [own_part(p.grad) for _, p in named if p.grad is not None]
    own = trained.optimizer.own_state()
    tensors += [own[f"{kind}.{name}"] for kind in ("mean", "square") for name, _ in named]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main(rank: int, world_size: int, port: str, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    group = Group.current()

    def save(state: dict[str, Tensor], name: str) -> None:
        if rank == 0:
            save_file(state, folder / f"{name}.safetensors")

    for case in CASES:
        trained = step_of(case, group)
        figures = train(trained, group, range(SAVED_AT))
        saved = state_of(trained)
        save(saved, f"{case}-{SAVED_AT}")
        figures += train(trained, group, range(SAVED_AT, STEPS))
        save(state_of(trained), f"{case}-{STEPS}")
        seen = group.gather(torch.tensor(figures)[None])
        if rank == 0:
            alike = all(torch.equal(one, seen[0]) for one in seen)
            (folder / f"{case}.json").write_text(json.dumps({"figures": figures, "alike": alike}))
        if case == "plain":
            (folder / f"kept-{rank}").write_text(str(kept(trained)))
            again = resumed(saved, case, group)
            train(again, group, range(SAVED_AT, STEPS))
            save(state_of(again), f"{case}-resumed")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
