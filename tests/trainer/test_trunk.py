"""The trunk: the checkpoint before the decay of a stage, an artifact out of which the next one grows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelchain.artifacts import Manifest
from modelchain.commit import hash_file, list_checkpoints, verify_stage
from modelchain.cost import stage_macs
from modelchain.errors import ExitCode, MissingInputError, UserDataError
from modelchain.prune import plan_prune, prune
from modelchain.resolved import ResolvedStage
from modelchain.spec import OptimizerState
from modelchain.store.folder import FolderStore
from modelchain_trainer import publish
from modelchain_trainer.attempt import begin
from modelchain_trainer.environment import ProcessEnvironment
from modelchain_trainer.expansion import expand, expand_moments
from modelchain_trainer.position import Position
from modelchain_trainer.stopping import StopRequest
from modelchain_trainer.train_state import TrainState, prepare

StageOf = Callable[..., ResolvedStage]
Train = Callable[..., Position]

TRUNK, STEPS = 9, 12  # the only steps with checkpoints: no others, which a busy writer might leave out
CLOCKS = {"time", "wallTime", "samplesPerSecond", "dataWaitFraction"}
KILLED = -9
STABLE = {"type": "WarmupStableDecay", "decayFraction": 0.25}

pair = pytest.mark.xdist_group("trunk-2")


def small_in(stage_in: StageOf, store: Path) -> ResolvedStage:
    """The predecessor: what it publishes is decayed and averaged, so it is not its trunk."""
    return stage_in(
        store, "small-stable", training={"schedule": STABLE, "emaDecay": 0.8, "checkpointEverySteps": 100}
    )


def large_in(stage_in: StageOf, store: Path, **changes: Any) -> ResolvedStage:
    """A stage with every lever: it grows out of the trunk, with moments, until it is better than its teacher."""
    return stage_in(
        store,
        "large-stable",
        width=32,
        layers=2,
        embed_dim=24,
        predecessor=small_in(stage_in, store),
        training={
            "schedule": STABLE,
            "emaDecay": 0.8,
            "warmupSteps": 0,
            "learningRate": 3e-3,
            "checkpointEverySteps": 100,
        },
        expansion={"weights": "Trunk", "optimizerState": "Carried"},
        distillation={"surpassWindowSteps": 3},
        **changes,
    )


def manifest_of(stage: ResolvedStage) -> Manifest:
    manifest = verify_stage(FolderStore(Path(stage.store.uri)), stage.folder, stage.digest)
    assert manifest is not None
    return manifest


def trunk_of(stage: ResolvedStage) -> Path:
    trunk = manifest_of(stage).trunk
    assert trunk is not None
    return Path(stage.store.uri) / stage.folder / trunk


def lines_of(stage: ResolvedStage) -> list[dict[str, Any]]:
    """All metrics but for clocks."""
    folder = Path(stage.store.uri) / stage.folder / "attempts" / manifest_of(stage).attempt
    lines = [json.loads(line) for file in sorted(folder.glob("metrics-*.jsonl")) for line in file.open()]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def result(stage: ResolvedStage) -> tuple[set[str], float, list[dict[str, Any]]]:
    """sha256 of the weights and of the trunk's files, the compute, and all that was measured."""
    manifest = manifest_of(stage)
    tensors = {entry.sha256 for entry in manifest.files if entry.path.endswith(".safetensors")}
    assert len(tensors) == 3, "weights; the trunk's weights and its optimizer"
    return tensors, manifest.macs, lines_of(stage)


@pytest.fixture(scope="session")
def trained(stage_in: StageOf, fork_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the predecessor, to be copied."""
    folder = tmp_path_factory.mktemp("stable")
    assert fork_server.run(small_in(stage_in, folder / "store"), folder / "run") == 0
    return folder / "store"


@pytest.fixture
def small(stage_in: StageOf, trained: Path, tmp_path: Path) -> ResolvedStage:
    shutil.copytree(trained, tmp_path / "store")
    return small_in(stage_in, tmp_path / "store")


@pytest.fixture
def large(small: ResolvedStage, stage_in: StageOf) -> ResolvedStage:
    return large_in(stage_in, Path(small.store.uri))


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, Any]:
    """Results by number of ranks."""
    return {}


@pytest.fixture
def reference(
    undisturbed: dict[int, Any], stage_in: StageOf, trained: Path, fork_server: Any, tmp_path: Path
) -> Callable[[int], Any]:
    """How the stage ends, trained by so many ranks, if nobody disturbs it."""

    def ends(ranks: int) -> Any:
        if ranks not in undisturbed:
            store = tmp_path / f"calm-{ranks}"
            shutil.copytree(trained, store)
            calm = large_in(stage_in, store)
            assert fork_server.run(calm, tmp_path / f"calm-run-{ranks}", ranks=ranks) == 0
            undisturbed[ranks] = result(calm)
        return undisturbed[ranks]

    return ends


@contextmanager
def prepared(stage: ResolvedStage, scratch: Path) -> Iterator[TrainState]:
    """The stage before its first step, in the test's own process."""
    scratch.mkdir()
    environment = ProcessEnvironment(
        rank=0,
        local_rank=0,
        world_size=1,
        local_world_size=1,
        master_address="127.0.0.1",
        master_port=1,
        token="uid-1-nonce",
        report=None,
        scratch=scratch,
        launcher_pid=None,
    )
    with begin(stage, environment, StopRequest(), Position()) as attempt:
        assert attempt is not None
        yield prepare(attempt)


def checkpoint_folders(stage: ResolvedStage) -> list[Path]:
    """Those with files: a killed attempt may leave an empty folder."""
    folders = (Path(stage.store.uri) / stage.folder).glob("attempts/*/checkpoints/*")
    return sorted(folder for folder in folders if any(folder.iterdir()))


def test_a_complete_stage_keeps_its_trunk_alone_and_lists_it_with_hashes(small: ResolvedStage) -> None:
    trunk = trunk_of(small)
    assert checkpoint_folders(small) == [trunk]
    assert json.loads((trunk / "state.json").read_text())["step"] == TRUNK
    entries = {entry.path: entry for entry in manifest_of(small).files}
    for name in ("model.safetensors", "optimizer.safetensors"):
        entry = entries[f"{manifest_of(small).trunk}/{name}"]
        assert (entry.bytes, entry.sha256) == (
            (trunk / name).stat().st_size,
            hash_file(trunk / name).sha256,
        )
    raw, published = (load_file(path) for path in (trunk / "model.safetensors", weights_of(small)))
    assert not torch.equal(raw["visual.proj"], published["visual.proj"])
    optimizer = load_file(trunk / "optimizer.safetensors")
    assert float(optimizer["optimizer.steps"]) == TRUNK
    assert any(name.startswith("average.") for name in optimizer)


def weights_of(stage: ResolvedStage) -> Path:
    return Path(stage.store.uri) / stage.folder / manifest_of(stage).weights


def test_a_stage_whose_rate_decays_all_the_time_has_no_trunk(stage_of: StageOf, train: Train) -> None:
    stage = stage_of("linear", training={"schedule": {**STABLE, "decayFraction": 1.0}})
    train(stage)
    assert manifest_of(stage).trunk is None
    assert checkpoint_folders(stage) == []


def test_the_next_stage_begins_with_the_grown_trunk_and_its_moments(
    small: ResolvedStage, large: ResolvedStage, tmp_path: Path
) -> None:
    trunk = load_file(trunk_of(small) / "model.safetensors")
    optimizer = load_file(trunk_of(small) / "optimizer.safetensors")
    sizes = (small.model_config_, large.model_config_)
    expected = expand(trunk, *sizes, large.expansion, seed=large.training.seed)
    with prepared(large, tmp_path / "scratch") as trained:
        model, state = trained.model.state_dict(), trained.train_step.state_dict()
        assert all(torch.equal(model[name], tensor) for name, tensor in expected.items())
        assert float(state["optimizer.steps"]) == TRUNK
        for kind, power in (("mean", 1), ("square", 2)):
            prefix = f"optimizer.{kind}."
            before = {n.removeprefix(prefix): t for n, t in optimizer.items() if n.startswith(prefix)}
            for name, tensor in expand_moments(before, *sizes, large.expansion, power=power).items():
                assert torch.equal(state[prefix + name], tensor), prefix + name
                assert tensor.any() or "resblocks.1" in name or name.startswith("token"), name
            assert not state[f"{prefix}projections.image"].any()
        for name, tensor in trained.published.state_dict().items():
            assert torch.equal(state[f"average.{name}"], tensor)
            assert torch.equal(model[name], tensor)


def test_a_reset_optimizer_begins_with_nothing(
    small: ResolvedStage, stage_in: StageOf, tmp_path: Path
) -> None:
    stage = large_in(stage_in, Path(small.store.uri))
    expansion = stage.expansion.model_copy(update={"optimizer_state": OptimizerState.RESET})
    with prepared(stage.model_copy(update={"expansion": expansion}), tmp_path / "scratch") as trained:
        state = trained.train_step.state_dict()
        assert not any(tensor.any() for name, tensor in state.items() if name.startswith("optimizer."))


@pytest.mark.parametrize("weights", ["Trunk", "Published"])
def test_what_teaches_is_the_published_model_whatever_the_student_grows_out_of(
    weights: str, small: ResolvedStage, stage_in: StageOf, train: Train
) -> None:
    stage = stage_in(
        Path(small.store.uri), "student", width=32, predecessor=small, expansion={"weights": weights}
    )
    train(stage)
    first = lines_of(stage)[1]
    assert (first["kind"], first["step"]) == ("train", 1)
    grown_of_teacher = first["loss"]["distillation"] < 1e-6
    assert grown_of_teacher == (weights == "Published")


def test_the_teacher_may_be_another_stage_than_the_predecessor(
    small: ResolvedStage, stage_in: StageOf, train: Train
) -> None:
    """A larger one polishes a model that grows out of a smaller one."""
    store = Path(small.store.uri)
    teacher = stage_in(store, "teacher", width=32, embed_dim=24, predecessor=small)
    train(teacher)
    reference = teacher.model_copy(update={"predecessor": teacher.predecessor})
    stage = stage_in(store, "polished", predecessor=small)
    taught = stage.model_copy(
        update={"teacher": stage.teacher and stage.teacher.model_copy(update=_reference(reference))}
    )
    train(taught, "uid-2-nonce")
    manifest = manifest_of(taught)
    assert (manifest.predecessor, manifest.teacher) == (small.digest, teacher.digest)
    assert manifest.macs == stage_macs(taught) > stage_macs(stage)
    assert all(line["loss"]["distillation"] > 1e-4 for line in lines_of(taught) if line["kind"] == "train")


def _reference(stage: ResolvedStage) -> dict[str, object]:
    return {name: getattr(stage, name) for name in ("name", "digest", "folder", "model_config_")}


def test_a_predecessor_without_a_trunk_is_named(
    stage_of: StageOf, trained_small: Path, train: Train, tmp_path: Path
) -> None:
    shutil.copytree(trained_small, tmp_path / "store")
    stage = stage_of("grown", width=32, predecessor=stage_of("small"), expansion={"weights": "Trunk"})
    with pytest.raises(UserDataError, match=r"stage small has no trunk; give it training\.schedule\.type"):
        train(stage)


def test_a_trunk_with_a_changed_byte_is_refused(
    small: ResolvedStage, large: ResolvedStage, train: Train
) -> None:
    path = trunk_of(small) / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserDataError, match=r"optimizer\.safetensors"):
        train(large)


def test_distillation_ends_within_the_stage_and_only_steps_with_the_teacher_are_counted(
    reference: Callable[[int], Any], large: ResolvedStage
) -> None:
    _, macs, lines = reference(1)
    steps = [line for line in lines if line["kind"] == "train"]
    taught = [line["distillationWeight"] > 0 for line in steps]
    count = sum(taught)
    assert taught == [True] * count + [False] * (STEPS - count)
    assert 0 < count < STEPS, "the student must pass its teacher within the stage"
    assert count % 3 == 0
    for line in lines:
        so_far = min(line["step"], count)
        assert line["macs"] == stage_macs(large, until_step=line["step"], teacher_steps=so_far)
    assert macs == stage_macs(large, teacher_steps=count) < stage_macs(large)


@pytest.mark.parametrize(
    "failpoint",
    [
        "step:5",
        "step:5:TERM",  # within a window of distillation
        "step:9",  # done, and not saved yet
        "checkpoint-file:2",  # of the trunk
        "checkpoint-commit:1",
        "checkpoint-committed:1",
        "step:10:TERM",
        "checkpoint-committed:2",  # the last one
        "upload-file:2",
        "manifest",
    ],
)
def test_killed_anywhere_it_ends_with_the_same_weights_trunk_and_figures(
    failpoint: str, large: ResolvedStage, fork_server: Any, tmp_path: Path, reference: Callable[[int], Any]
) -> None:
    ended = ExitCode.TERMINATED if failpoint.endswith("TERM") else KILLED
    assert fork_server.run(large, tmp_path / "first", failpoint=failpoint) == ended
    assert fork_server.run(large, tmp_path / "second") == 0
    assert result(large) == reference(1)
    assert checkpoint_folders(large) == [trunk_of(large)]


@pytest.mark.parametrize("kept", [None, 7])
def test_without_its_trunk_an_attempt_goes_back_before_the_decay(
    kept: int | None,
    large: ResolvedStage,
    fork_server: Any,
    tmp_path: Path,
    reference: Callable[[int], Any],
) -> None:
    """To the newest checkpoint there, or to the start."""
    folder = Path(large.store.uri) / large.folder
    assert fork_server.run(large, tmp_path / "first", failpoint="step:7:TERM") == ExitCode.TERMINATED
    (before,) = folder.glob("attempts/*/checkpoints/*")
    if kept is not None:
        shutil.copytree(before, tmp_path / "aside")
    assert fork_server.run(large, tmp_path / "second", failpoint="step:3:TERM") == ExitCode.TERMINATED
    store = FolderStore(Path(large.store.uri))
    assert [c.step for c in list_checkpoints(store, large.folder) if c.finished] == [10, TRUNK]
    (trunk,) = folder.glob(f"attempts/*/checkpoints/*{TRUNK}")
    shutil.rmtree(trunk)
    if kept is not None:
        shutil.copytree(tmp_path / "aside", before, dirs_exist_ok=True)
    (rank,) = fork_server.start(large, tmp_path / "third")
    assert rank.wait() == 0
    assert "passed over: the trunk at step 9 is gone" in rank.log.read_text()
    assert ("going on from step 7" in rank.log.read_text()) == (kept is not None)
    assert result(large) == reference(1)


def test_nothing_is_published_without_the_trunk(
    large: ResolvedStage, train: Train, fork_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted under an attempt that had it when it began."""
    assert fork_server.run(large, tmp_path / "first", failpoint="step:10:TERM") == ExitCode.TERMINATED
    (trunk,) = (Path(large.store.uri) / large.folder).glob(f"attempts/*/checkpoints/*{TRUNK}")
    upload = publish._upload  # the moment at which somebody deletes

    def after_deletion(*arguments: Any) -> Any:
        shutil.rmtree(trunk)
        return upload(*arguments)

    monkeypatch.setattr(publish, "_upload", after_deletion)
    with pytest.raises(MissingInputError, match="its checkpoint at step 9, the trunk, was deleted"):
        train(large)
    assert verify_stage(FolderStore(Path(large.store.uri)), large.folder, large.digest) is None


def test_a_finished_stage_keeps_its_trunk_when_the_store_is_pruned(small: ResolvedStage) -> None:
    store = FolderStore(Path(small.store.uri))
    store.put("chains/default/squares.json", json.dumps({"folder": small.folder}).encode())
    plan = plan_prune(store, now=4e9, min_age_seconds=0)
    prune(store, plan, min_age_seconds=0)
    assert plan.removals == ()
    assert manifest_of(small).trunk is not None
    assert {path.name for path in trunk_of(small).iterdir()} == {
        "checkpoint.json",
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    }


@pair
def test_two_processes_do_what_one_does(reference: Callable[[int], Any]) -> None:
    """Both ranks have the moments, the average and the end of distillation: else their weights would part."""
    (_, one_macs, one_lines), (_, two_macs, two_lines) = reference(1), reference(2)
    assert one_macs == two_macs
    for one, two in zip(one_lines, two_lines, strict=True):
        assert (one["kind"], one["step"], one["macs"]) == (two["kind"], two["step"], two["macs"])
        if one["kind"] == "train":
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-5)
            assert two["distillationWeight"] == one["distillationWeight"]


@pair
@pytest.mark.parametrize("failpoint", ["step:7:TERM", "step:10"])
def test_two_processes_resume_with_the_same_bits(
    failpoint: str, large: ResolvedStage, fork_server: Any, tmp_path: Path, reference: Callable[[int], Any]
) -> None:
    stopped = fork_server.run(large, tmp_path / "stopped", ranks=2, failpoint=failpoint)
    assert stopped == (ExitCode.TERMINATED if failpoint.endswith("TERM") else KILLED)
    assert fork_server.run(large, tmp_path / "second", ranks=2) == 0
    assert result(large) == reference(2)
