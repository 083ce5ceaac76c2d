from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import pytest

from modelchain.catalogue import UnknownModelError
from modelchain.resolve import UnresolvableError, resolve
from modelchain.resolved import MAX_STAGE_BYTES, ResolvedStage
from modelchain.shards import ShardPatternError
from modelchain.spec import ModelChain
from tests.modelchain.documents import REMOVED, Path, chain, digests, document, resolved


def test_a_stage_overrides_the_chain_field_by_field() -> None:
    first, second, third = resolved(
        {
            ("training", "seed"): 5,
            ("stages", 1, "training"): {"learningRate": 0.01},
            ("stages", 1, "data"): {"samples": 512},
        }
    ).stages
    assert (first.training.epochs, second.training.epochs, third.training.epochs) == (8, 4, 4)
    assert (first.training.learning_rate, second.training.learning_rate) == (0.001, 0.01)
    assert {stage.training.seed for stage in (first, second, third)} == {5}
    assert (second.data.samples, third.data.samples) == (512, 100000)
    assert second.data.shards == first.data.shards


def test_zero_and_false_in_a_stage_override_the_chain() -> None:
    stage = resolved(
        {
            ("training", "compile"): True,
            ("stages", 1, "training"): {"compile": False, "weightDecay": 0, "warmupSteps": 0},
            ("stages", 1, "distillation"): {"weight": 0},
            ("stages", 1, "evaluation"): [],
        }
    ).stages[1]
    assert stage.training.compile is False
    assert (stage.training.weight_decay, stage.training.warmup_steps, stage.distillation.weight) == (0, 0, 0)
    assert stage.evaluation == ()


def test_a_schedule_is_replaced_whole() -> None:
    stage = resolved({("stages", 1, "distillation"): {"schedule": {"type": "Linear", "until": 0.25}}}).stages[
        1
    ]
    assert (stage.distillation.weight, stage.distillation.schedule.until) == (0.98, 0.25)
    assert stage.distillation.schedule.end_weight == 0  # not the chain's 0.1


def test_evaluations_of_a_stage_replace_the_chains() -> None:
    own = [{"name": "own", "type": "Retrieval", "data": {"shards": ["a.tar"]}}]
    first, second, _ = resolved({("stages", 1, "evaluation"): own}).stages
    assert [one.name for one in first.evaluation] == ["val", "pets"]
    assert [one.name for one in second.evaluation] == ["own"]


def test_defaults_are_those_of_the_documentation() -> None:
    minimal: dict[Path, Any] = {
        ("data", "captionKeys"): REMOVED,
        ("evaluation",): REMOVED,
        ("training",): {"epochs": 1},
        ("distillation",): REMOVED,
        ("expansion",): REMOVED,
        ("job",): REMOVED,
    }
    stage = resolved(minimal).stages[1]
    training = stage.training
    assert stage.data.caption_keys == ("txt",)
    assert (stage.data.block_mebibytes, stage.data.window_blocks) == (4, 128)
    assert (stage.data.random_crop_scale, stage.data.max_corrupt_fraction) == ((0.9, 1.0), 0.01)
    assert (training.global_batch_size, training.learning_rate, training.minimum_learning_rate) == (
        1024,
        1e-3,
        3e-6,
    )
    assert (training.beta1, training.beta2, training.epsilon, training.weight_decay) == (0.9, 0.98, 1e-6, 0.1)
    assert (training.precision, training.seed, training.gradient_clip_norm) == ("Fp32", 0, None)
    assert (stage.distillation.weight, stage.distillation.schedule.type) == (1.0, "Constant")
    assert (stage.expansion.width, stage.expansion.depth) == ("Exact", "Identity")
    assert (stage.retry.limit, stage.retry.backoff_seconds, stage.retry.stall_seconds) == (3, 30, 1800)
    assert (stage.job.nodes, stage.job.processes_per_node) == (1, 1)
    assert (stage.task, stage.evaluation) == ("Clip", ())


@pytest.mark.parametrize(
    ("samples", "epochs", "steps", "warmup_alone", "warmup_in_chain", "checkpoint"),
    [
        (256, 4, 4, 0, 0, 1),
        (256 * 100 + 255, 1, 100, 10, 10, 5),  # the incomplete batch is left out
        (256 * 1000, 20, 20000, 2000, 1000, 1000),
        (256 * 10000, 20, 200000, 8000, 1000, 2000),
    ],
)
def test_steps_and_what_follows_from_them(
    samples: int, epochs: int, steps: int, warmup_alone: int, warmup_in_chain: int, checkpoint: int
) -> None:
    first, second, _ = resolved(
        {("data", "samples"): samples, ("training", "epochs"): epochs, ("stages", 0, "training"): REMOVED}
    ).stages
    assert first.training.steps == second.training.steps == steps
    assert first.training.steps == first.training.steps_per_epoch * epochs
    assert (first.training.warmup_steps, second.training.warmup_steps) == (warmup_alone, warmup_in_chain)
    assert second.training.checkpoint_every_steps == checkpoint


@pytest.mark.parametrize(
    ("decay", "carried", "trunk", "warmup"),
    [
        (None, False, 1248, 156),
        (0.5, False, 780, 156),
        (0.99, False, 16, 15),
        (1, False, None, 156),
        (None, True, 1248, 0),
    ],
)
def test_the_default_warmup_ends_before_the_decay_and_carried_moments_need_none(
    decay: float | None, carried: bool, trunk: int | None, warmup: int
) -> None:
    schedule = {"type": "WarmupStableDecay"} | ({"decayFraction": decay} if decay else {})
    expansion = {"weights": "Trunk", "optimizerState": "Carried"} if carried else {}
    training = resolved({("training", "schedule"): schedule, ("expansion",): expansion}).stages[1].training
    assert training.schedule.decay_fraction == (decay or 0.2)
    assert (training.trunk_steps, training.warmup_steps) == (trunk, warmup)


def test_the_baseline_is_trained_as_long_as_the_first_stage_that_is_trained() -> None:
    weights = {"uri": "s3://a/b", "sha256": "ab" * 32}
    chain = resolved({("stages", 0, "training"): {"epochs": 0}, ("stages", 0, "fromWeights"): weights})
    assert chain.stages[0].training.steps == 0
    assert chain.baseline_epochs == chain.stages[1].training.epochs == 4


def test_a_linear_schedule_is_written_out() -> None:
    stage = resolved({("distillation", "schedule"): {"type": "Linear"}}).stages[1]
    assert (stage.distillation.schedule.until, stage.distillation.schedule.end_weight) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("job", "processes"),
    [
        ({}, 1),
        ({"gpusPerNode": 8}, 8),
        ({"gpusPerNode": 0}, 1),
        ({"gpusPerNode": 0, "processesPerNode": 4}, 4),
    ],
)
def test_one_process_a_gpu_and_one_without(job: dict[str, int], processes: int) -> None:
    assert resolved({("job",): job}).stages[0].job.processes_per_node == processes


def test_predecessors_follow_the_order_or_from() -> None:
    stages = resolved({("stages", 2, "from"): "tiny"}).stages
    assert stages[0].predecessor is None
    assert stages[1].predecessor is not None and stages[1].predecessor.digest == stages[0].digest
    assert stages[2].predecessor is not None and stages[2].predecessor.name == "tiny"
    assert stages[2].predecessor.folder == stages[0].folder
    assert stages[2].predecessor.model_config_ == stages[0].model_config_


def test_a_stage_needs_its_predecessor_and_its_teacher_each_once() -> None:
    stages = resolved(
        {
            ("stages", 1, "distillation"): {"teacher": "tiny"},
            ("stages", 2, "distillation"): {"teacher": "tiny"},
        }
    ).stages
    assert [[other.name for other in stage.needs] for stage in stages] == [[], ["tiny"], ["small", "tiny"]]
    assert stages[2].teacher is not None and stages[2].teacher.digest == stages[0].digest


def test_a_stage_that_starts_fresh_is_taught_and_has_no_predecessor() -> None:
    stages = resolved({("stages", 2, "expansion"): {"width": "Fresh"}}).stages
    assert stages[1].predecessor is not None
    assert stages[2].predecessor is None
    assert stages[2].teacher is not None and stages[2].teacher.name == "small"
    assert [other.name for other in stages[2].needs] == ["small"]
    assert (
        stages[2].training.warmup_steps
        == resolved({("stages", 2, "from"): "tiny"}).stages[2].training.steps // 10
    )


def test_baseline_defaults_to_the_first_stages_epochs() -> None:
    assert resolved().baseline_epochs == 8
    assert resolved({("baseline",): {"epochs": 32}}).baseline_epochs == 32


def test_model_written_out_is_called_after_its_stage() -> None:
    assert [stage.model for stage in resolved().stages] == ["ViT-T-16", "ViT-S-16", "base"]


def test_uid_of_a_file_is_stable_and_differs_by_name_and_namespace() -> None:
    def uid(**metadata: str) -> str:
        return resolve(ModelChain.model_validate(document() | {"metadata": metadata})).chain.uid

    assert uid(name="a") == uid(name="a", namespace="default") == "7223388d-f364-562a-8d11-bfdc1c9865f4"
    assert len({uid(name="a"), uid(name="b"), uid(name="a", namespace="b")}) == 3
    assert uid(name="a", uid="7a0c") == "7a0c"


def test_relative_paths_stay_or_are_placed_below_base() -> None:
    changes: dict[Path, Any] = {
        ("store", "uri"): "runs",
        ("data", "shards"): ["data/{0..1}.tar", "/absolute.tar", "file:///f.tar", "s3://b/x.tar"],
        ("evaluation", 1, "classes"): REMOVED,
        ("evaluation", 1, "classesUri"): "names.txt",
        ("evaluation", 1, "data", "shards"): ["pets.tar"],
        ("stages", 0, "fromWeights"): {"uri": "weights", "sha256": "ab" * 32},
    }
    as_written = resolved(changes)
    assert as_written.store.uri == "runs"
    assert as_written.stages[0].data.shards[0] == "data/{0..1}.tar"
    placed = resolve(chain(changes), base=FilePath("/chains"))
    stage = placed.stages[0]
    assert placed.store.uri == stage.store.uri == "/chains/runs"
    assert stage.data.shards == ("/chains/data/{0..1}.tar", "/absolute.tar", "file:///f.tar", "s3://b/x.tar")
    assert (stage.evaluation[1].classes_uri, stage.evaluation[1].data.shards) == (
        "/chains/names.txt",
        ["/chains/pets.tar"],
    )
    assert stage.from_weights is not None and stage.from_weights.uri == "/chains/weights"
    assert [one.digest for one in placed.stages] == [one.digest for one in as_written.stages]


def test_a_folder_whose_name_can_not_be_written_is_refused_in_words_that_can() -> None:
    with pytest.raises(
        UnresolvableError, match=r"chains-caf\\udce9: the folder's name is not UTF-8"
    ) as raised:
        resolve(chain(), base=FilePath("/data/chains-caf\udce9"))
    str(raised.value).encode()


def test_a_stage_comes_back_whole_from_the_environment() -> None:
    for stage in resolved({("stages", 0, "fromWeights"): {"uri": "w", "sha256": "ab" * 32}}).stages:
        assert ResolvedStage.model_validate_json(stage.to_json()) == stage


def test_what_a_stage_says_has_one_digest_in_every_release_and_with_any_file_of_certificates() -> None:
    stage = resolved().stages[1]
    store = stage.store.model_copy(update={"ca_bundle": "/elsewhere/ca.crt"})
    assert stage.model_copy(update={"version": stage.version + 1, "store": store}).sha256() == stage.sha256()
    another = stage.store.model_copy(update={"uri": "s3://elsewhere"})
    assert stage.model_copy(update={"store": another}).sha256() != stage.sha256()


def test_a_resolved_stage_holds_no_secret_name() -> None:
    stage = resolved({("store", "secretRef"): {"name": "s3-credentials"}}).stages[0]
    assert "s3-credentials" not in stage.to_json()


def test_a_stage_too_large_for_a_job_is_refused() -> None:
    classes = [f"class number {index} with a rather long name" for index in range(1900)]
    with pytest.raises(UnresolvableError, match=rf"over the {MAX_STAGE_BYTES}.*classesUri") as caught:
        resolved({("evaluation", 1, "classes"): classes})
    assert caught.value.path == ("spec", "stages", 0)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({("stages", 1, "model"): "ViT-Q-16"}, UnknownModelError, "ViT-Q-16"),
        ({("stages", 1, "model"): REMOVED}, UnresolvableError, "give one model, by name or written out"),
        ({("stages", 1, "from"): "base"}, UnresolvableError, "'base'"),
        ({("stages", 1, "fromWeights"): {"uri": "w", "sha256": "ab" * 32}}, UnresolvableError, "fromWeights"),
        ({("data", "shards"): ["{2..1}"]}, ShardPatternError, "{1..2}"),
        ({("data", "samples"): REMOVED}, UnresolvableError, "data.samples"),
        ({("data", "samples"): 10}, UnresolvableError, "globalBatchSize"),
        ({("training", "epochs"): REMOVED}, UnresolvableError, "epochs"),
    ],
)
def test_what_can_not_be_resolved_says_why(
    changes: dict[Path, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        resolved(changes)
    assert words in str(caught.value)


def test_resolving_twice_gives_the_same() -> None:
    assert resolved() == resolved()
    assert digests() == digests()
