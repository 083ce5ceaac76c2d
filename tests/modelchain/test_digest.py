"""The digest is the address of weeks of training: what changes it, what must not, and its exact values for
ever.
"""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain import digest as digest_module
from modelchain.block import Block
from modelchain.digest_form import REQUIRED, Table
from modelchain.families import (
    CLASSIFIER,
    CLIP,
    LANGUAGE_MODEL,
    ClassifierConfig,
    LanguageModelConfig,
    ModelConfig,
    TextSpec,
    VisionSpec,
    clip,
    towers,
)
from modelchain.resolve import resolve
from modelchain.resolved import (
    ResolvedChain,
    ResolvedData,
    ResolvedDistillation,
    ResolvedExpansion,
    ResolvedSource,
    ResolvedStage,
    ResolvedTraining,
)
from modelchain.spec import DistillationSchedule, LearningRateSchedule, ModelChain, TokenizerSpec
from modelchain.validation import load_chains
from modelchain.yaml_reader import read_documents
from tests.modelchain.documents import REMOVED, Path, digests, document, resolved

EXAMPLES = FilePath(__file__).parents[2] / "examples"
BASE = digests()
SHA = "ab" * 32

# (where below spec, new value): what decides no weights. Where it runs, what watches it, where bytes come
# from.
IDLE: list[tuple[Path, Any]] = [
    (("image",), "trainer:2"),
    (("store", "uri"), "file:///elsewhere"),
    (("store", "endpointUrl"), "http://minio:9000"),
    (("store", "region"), "eu-west-1"),
    (("store", "secretRef"), {"name": "other"}),
    (("evaluation",), REMOVED),
    (("evaluation", 0, "everySteps"), 10),
    (("baseline",), {"epochs": 3}),
    (("job",), {"nodes": 4, "gpusPerNode": 8, "activeDeadlineSeconds": 100, "queueName": "q"}),
    (("retry",), {"limit": 9, "backoffSeconds": 1, "stallSeconds": 5, "leaseSeconds": 4}),
    (("suspend",), True),
    (("task",), "Clip"),
    (("data", "maxCorruptFraction"), 0.5),
    (("data", "maxMissingShards"), 3),
    (("training", "microBatchSize"), 16),
    (("training", "microBatchSize"), "Auto"),
    (("training", "checkpointEverySteps"), 3),
    (("training", "keepCheckpoints"), 9),
    (("training", "logEverySteps"), 1),
    (("training", "dataWorkers"), 0),
    (("training", "gradientCheckpointing"), True),
    (("training", "compile"), True),
    # defaults written out
    (("training", "learningRate"), REMOVED),
    (("training", "beta1"), 0.9),
    (("training", "beta2"), 0.98),
    (("training", "epsilon"), 1e-6),
    (("training", "weightDecay"), 0.1),
    (("training", "minimumLearningRate"), 3e-6),
    (("training", "precision"), "Fp32"),
    (("training", "seed"), 0),
    (("data", "blockMebibytes"), 4),
    (("data", "windowBlocks"), 128),
    (("data", "draftDecoding"), True),
    (("training", "schedule"), {"type": "Cosine"}),
    (("data", "randomCropScale"), [0.9, 1]),
    (("expansion",), REMOVED),
    (("stages", 2, "modelConfig", "vision", "imageSize"), 224),
    (("stages", 2, "modelConfig", "vision", "mlpRatio"), 4),
    (("stages", 2, "modelConfig", "quickGelu"), False),
    (("stages", 2, "modelConfig", "text", "causal"), True),
    # the same in other words
    (("data", "shards"), [f"s3://data/00{i}.tar" for i in range(4)]),
    (("data", "shards"), ["s3://data/{000..001}.tar", "s3://data/{002,003}.tar"]),
    (("stages", 1, "name"), "renamed"),
    (("stages", 0, "model"), REMOVED),
    (("stages", 1, "from"), "tiny"),
]
# (where, new value, first stage that changes)
DECIDING: list[tuple[Path, Any, int]] = [
    (("data", "shards"), ["s3://data/{000..004}.tar"], 0),
    (("data", "shards"), ["s3://data/{002,003,000,001}.tar"], 0),
    (("data", "samples"), 100001, 0),
    (("data", "captionKeys"), ["txt"], 0),
    (("data", "captionKeys"), ["long.txt", "txt"], 0),
    (("data", "captionKeys"), ["json:caption"], 0),
    (("data", "imageKeys"), ["input.jpg"], 0),
    (("data", "blockMebibytes"), 8, 0),
    (("data", "windowBlocks"), 8, 0),
    (("data", "randomCropScale"), [0.5, 1.0], 0),
    (("data", "draftDecoding"), False, 0),
    (("training", "epochs"), 5, 1),
    (("training", "globalBatchSize"), 128, 0),
    (("training", "learningRate"), 5e-4, 0),
    (("training", "minimumLearningRate"), 0, 0),
    (("training", "warmupSteps"), 7, 0),
    (("training", "weightDecay"), 0.2, 0),
    (("training", "beta1"), 0.8, 0),
    (("training", "beta2"), 0.99, 0),
    (("training", "epsilon"), 1e-8, 0),
    (("training", "gradientClipNorm"), 1.0, 0),
    (("training", "precision"), "Bf16", 0),
    (("training", "seed"), 1, 0),
    (("training", "emaDecay"), 0.99, 0),
    (("training", "lockedTower"), "Image", 1),
    (("training", "schedule"), {"type": "WarmupStableDecay"}, 0),
    (("training", "schedule"), {"type": "WarmupStableDecay", "decayFraction": 0.1}, 0),
    (("distillation", "weight"), 1.5, 1),
    (("distillation", "schedule"), {"type": "Constant"}, 1),
    (("distillation", "schedule", "until"), 0.75, 1),
    (("distillation", "schedule", "endWeight"), 0.2, 1),
    (("expansion", "width"), "Slice", 1),
    (("expansion", "depth"), "Stack", 1),
    (("expansion", "weights"), "Trunk", 1),
    (("expansion", "optimizerState"), "Carried", 1),
    (("distillation", "surpassWindowSteps"), 20, 1),
    (("stages", 2, "distillation"), {"teacher": "tiny"}, 2),
    (("stages", 0, "fromWeights"), {"uri": "s3://a", "sha256": SHA}, 0),
    (("stages", 1, "training"), {"seed": 3}, 1),
    (("stages", 2, "training"), {"epochs": 2}, 2),
    (("stages", 2, "expansion"), {"width": "Slice"}, 2),
    (("stages", 2, "expansion"), {"width": "Fresh"}, 2),
    (("stages", 2, "from"), "tiny", 2),
    (("stages", 2, "modelConfig", "embedDim"), 640, 2),
    (("stages", 2, "modelConfig", "quickGelu"), True, 2),
    (("stages", 2, "modelConfig", "text", "causal"), False, 2),
    (("stages", 2, "modelConfig", "vision", "imageSize"), 240, 2),
    (("stages", 2, "modelConfig", "vision", "patchSize"), 32, 2),
    (("stages", 2, "modelConfig", "vision", "width"), 832, 2),
    (("stages", 2, "modelConfig", "vision", "layers"), 13, 2),
    (("stages", 2, "modelConfig", "vision", "headWidth"), 32, 2),
    (("stages", 2, "modelConfig", "vision", "mlpRatio"), 3, 2),
    (("stages", 2, "modelConfig", "text", "width"), 576, 2),
    (("stages", 2, "modelConfig", "text", "layers"), 13, 2),
    (("stages", 2, "modelConfig", "text", "heads"), 16, 2),
    (("stages", 2, "modelConfig", "text", "contextLength"), 32, 2),
    (("stages", 2, "modelConfig", "text", "mlpRatio"), 3, 2),
]


def _with_model_written_out(changes: dict[Path, Any]) -> dict[Path, Any]:
    """Replaces removing the first stage's name of a model by writing the same model out."""
    if changes.get(("stages", 0, "model")) is REMOVED:
        sizes = {"vision": {"width": 192, "layers": 12}, "text": {"width": 256, "layers": 12, "heads": 4}}
        return changes | {("stages", 0, "modelConfig"): {"embedDim": 512} | sizes}
    return changes


@pytest.mark.parametrize(("path", "value"), IDLE, ids=str)
def test_digest_ignores_what_decides_no_weights(path: Path, value: Any) -> None:
    assert digests(_with_model_written_out({path: value})) == BASE


@pytest.mark.parametrize(("path", "value", "first"), DECIDING, ids=str)
def test_digest_changes_for_the_stage_and_its_descendants_only(path: Path, value: Any, first: int) -> None:
    changed = digests({path: value})
    assert changed[:first] == BASE[:first]
    assert set(changed[first:]).isdisjoint(BASE)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(IDLE), unique_by=lambda change: change[0][:1], max_size=6),
    st.lists(st.sampled_from(DECIDING), unique_by=lambda change: change[0][0], max_size=1),
)
def test_idle_changes_together_never_touch_a_digest(
    idle: list[tuple[Path, Any]], deciding: list[tuple[Path, Any, int]]
) -> None:
    decided = {path: value for path, value, _ in deciding}
    roots = {path[0] for path in decided}
    harmless = {path: value for path, value in idle if path[0] not in roots}
    assert digests(_with_model_written_out(harmless | decided)) == digests(decided)


def test_only_descendants_of_a_changed_stage_change_in_a_tree() -> None:
    tree: dict[Path, Any] = {
        ("stages",): [
            {"name": "root", "model": "ViT-T-16"},
            {"name": "left", "model": "ViT-S-16"},
            {"name": "right", "model": "ViT-C-16", "from": "root"},
            {"name": "leaf", "model": "ViT-B-16", "from": "left"},
        ]
    }
    before = dict(zip(["root", "left", "right", "leaf"], digests(tree), strict=True))
    after = dict(zip(before, digests(tree | {("stages", 1, "training"): {"epochs": 9}}), strict=True))
    assert {name for name in before if before[name] != after[name]} == {"left", "leaf"}


def test_two_chains_share_the_stages_that_mean_the_same() -> None:
    shorter = resolve(
        ModelChain.model_validate(document({("stages", 2): REMOVED}) | {"metadata": {"name": "other"}})
    )
    assert [stage.folder for stage in shorter.stages] == [stage.folder for stage in resolved().stages[:2]]


def test_a_model_by_name_and_the_same_written_out_share_a_folder() -> None:
    written = _with_model_written_out({("stages", 0, "model"): REMOVED})
    assert resolved(written).stages[0].folder == resolved().stages[0].folder
    assert resolved().stages[2].folder.startswith("stages/ViT-B-16-")


def _as_served(value: Any) -> Any:
    """As an API server returns it: 1.0 became 1, keys are sorted, there is a status and metadata of its own."""
    stored = json.loads(json.dumps(value, sort_keys=True))
    stored["metadata"] |= {
        "uid": "7a0c",
        "resourceVersion": "12",
        "generation": 3,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }
    return stored | {"status": {"phase": "Running", "stages": []}}


def _swap_notation(value: Any) -> Any:
    """Whole numbers as 1.0 and the other way round: both are the same JSON number."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [_swap_notation(item) for item in value]
    if isinstance(value, dict):
        return {key: _swap_notation(item) for key, item in value.items()}
    return value


def test_digest_survives_the_way_through_the_api_server() -> None:
    served = ModelChain.model_validate(_as_served(document()))
    assert [stage.digest for stage in resolve(served).stages] == BASE


@pytest.mark.parametrize(
    "extra", [{}, {("distillation", "weight"): 1.0, ("data", "randomCropScale"): [0.5, 1.0]}]
)
def test_digest_does_not_depend_on_the_notation_of_numbers(extra: dict[Path, Any]) -> None:
    swapped = ModelChain.model_validate(_swap_notation(document(extra)))
    assert [stage.digest for stage in resolve(swapped).stages] == digests(extra)


def test_digest_of_a_file_is_that_of_what_kubectl_sends() -> None:
    text = """
apiVersion: modelchain.dev/v1alpha1
kind: ModelChain
metadata: {name: a}
spec:
  store: {uri: s3://b/c}
  data: {shards: ["s3://d/{0..9}.tar"], samples: 1e5, captionKeys: [txt]}
  training: {epochs: 2.0, learningRate: 1e-3, weightDecay: 1E-1, seed: 0o17, precision: null}
  stages: [{name: t, model: ViT-T-16}]
"""
    sent = {  # the JSON that kubectl makes of it
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": "a"},
        "spec": {
            "store": {"uri": "s3://b/c"},
            "data": {"shards": ["s3://d/{0..9}.tar"], "samples": 100000, "captionKeys": ["txt"]},
            "training": {
                "epochs": 2,
                "learningRate": 0.001,
                "weightDecay": 0.1,
                "seed": 15,
                "precision": None,
            },
            "stages": [{"name": "t", "model": "ViT-T-16"}],
        },
    }
    (read,) = read_documents(text)
    assert read.value == sent
    assert resolve(ModelChain.model_validate(read.value)) == resolve(ModelChain.model_validate(sent))


def test_every_field_of_a_stage_is_known_to_decide_or_not_to() -> None:
    """A new field must be put on one side: in the tables of modelchain.digest, or here."""
    idle = {
        ResolvedTraining: {
            *(
                "microBatchSize",
                "checkpointEverySteps",
                "keepCheckpoints",
                "logEverySteps",
                "gradientCheckpointing",
                "sharding",
            ),
            *("compile", "dataWorkers", "stepsPerEpoch", "steps"),  # the last two follow from the others
        },
        ResolvedData: {"maxCorruptFraction", "maxMissingShards"},
        TokenizerSpec: {"uri"},
    }
    tables: dict[type[Block], tuple[str, set[str]]] = {
        ResolvedTraining: ("_TRAINING", {"schedule"}),
        LearningRateSchedule: ("_LEARNING_RATE_SCHEDULE", set()),
        ResolvedData: ("_DATA", {"shards", "sources", "tokenizer"}),
        ResolvedSource: ("_SOURCE", {"patterns"}),
        TokenizerSpec: ("_TOKENIZER", set()),
        ResolvedDistillation: ("_DISTILLATION", {"schedule"}),
        DistillationSchedule: ("_DISTILLATION_SCHEDULE", set()),
        ResolvedExpansion: ("_EXPANSION", set()),
    }
    models: dict[type[Block], tuple[Table, set[str]]] = {
        ModelConfig: (CLIP.digest, {"vision", "text"}),
        VisionSpec: (towers.VISION_DIGEST, set()),
        TextSpec: (clip.TEXT_DIGEST, set()),
        ClassifierConfig: (CLASSIFIER.digest, {"vision"}),
        LanguageModelConfig: (LANGUAGE_MODEL.digest, set()),
    }
    known = {kind: (getattr(digest_module, table), apart) for kind, (table, apart) in tables.items()} | models
    for kind, (table, apart) in known.items():
        fields = {info.alias or name for name, info in kind.model_fields.items()}
        assert fields == set(table) | apart | idle.get(kind, set()), kind.__name__
    assert set(ResolvedStage.model_fields) == {
        *(
            "task",
            "model_config_",
            "data",
            "training",
            "distillation",
            "expansion",
            "predecessor",
            "teacher",
            "from_weights",
        ),
        *(
            "version",
            "chain",
            "name",
            "index",
            "digest",
            "folder",
            "model",
            "image",
            "store",
            "evaluation",
            "retry",
            "job",
        ),
    }
    assert "stages" in ResolvedChain.model_fields


def test_frozen_defaults_are_those_of_the_types() -> None:
    """If a default changes, old chains must not mean something else under the old digest: give them a new
    version.
    """
    kinds: list[tuple[Table, type[Block]]] = [
        (digest_module._TRAINING, ResolvedTraining),
        (digest_module._DATA, ResolvedData),
        (CLIP.digest, ModelConfig),
        (towers.VISION_DIGEST, VisionSpec),
        (clip.TEXT_DIGEST, TextSpec),
        (digest_module._DISTILLATION, ResolvedDistillation),
        (digest_module._EXPANSION, ResolvedExpansion),
    ]
    for frozen, kind in kinds:
        defaults = {
            info.alias or name: info.default
            for name, info in kind.model_fields.items()
            if not info.is_required()
        }
        for name, default in defaults.items():
            if name in frozen and frozen[name] is not REQUIRED:
                expected = list(default) if isinstance(default, tuple) else default
                assert frozen[name] == expected, f"{kind.__name__} {name}"


def in_sources(*sources: dict[str, Any]) -> list[str]:
    """Digests of the chain of `document`, with its four shards in sources."""
    data = {"captionKeys": ["txt", "long.txt"], "sources": list(sources)}
    return [stage.digest for stage in resolved({("data",): data}).stages]


def test_sources_that_are_seen_once_are_the_same_data() -> None:
    one = {"shards": ["s3://data/{000..002}.tar"], "samples": 60000}
    other = {"shards": ["s3://data/003.tar"], "samples": 40000, "repeat": 1}
    assert in_sources(one, other) == [stage.digest for stage in resolved().stages]


def test_how_often_which_samples_are_seen_decides() -> None:
    one = {"shards": ["s3://data/{000..002}.tar"], "samples": 60000, "repeat": 2.5}
    other = {"shards": ["s3://data/003.tar"], "samples": 40000}
    digests = [
        in_sources(one, other),
        in_sources(one | {"repeat": 2}, other),
        in_sources(one, other | {"repeat": 0.5}),
        in_sources(
            one | {"shards": ["s3://data/{000,001}.tar"]}, other | {"shards": ["s3://data/00{2,3}.tar"]}
        ),
        in_sources(one | {"samples": 60002}, other | {"samples": 39995}),  # as many an epoch
        [stage.digest for stage in resolved().stages],
    ]
    assert len({digest[0] for digest in digests}) == len(digests)
    written_out = one | {"shards": [f"s3://data/00{n}.tar" for n in range(3)]}
    assert in_sources(written_out, other | {"repeat": 1.0}) == digests[0]


def test_canonical_form_is_what_it_always_was() -> None:
    stage = resolved().stages[1]
    form = digest_module.canonical_form(
        task=stage.task,
        model=stage.model_config_,
        data=stage.data,
        training=stage.training,
        distillation=stage.distillation,
        expansion=stage.expansion,
        predecessor="00" * 32,
        teacher="00" * 32,
        from_weights=None,
    )
    assert json.loads(form) == {
        "digestVersion": 2,
        "task": "Clip",
        "model": {
            "embedDim": 512,
            "vision": {"width": 384, "layers": 12},
            "text": {"width": 384, "layers": 12, "heads": 6},
        },
        "data": {
            "samples": 100000,
            "captionKeys": ["txt", "long.txt"],
            "shards": "f99527470d5cd19d4768a0696aba0b0b4ecaf2701e052cc00059a43c243ba3fe",
        },
        "training": {"epochs": 4, "globalBatchSize": 256, "warmupSteps": 156, "schedule": {}},
        "predecessor": "00" * 32,
        "distillation": {"weight": 0.98, "schedule": {"type": "Linear", "until": 0.5, "endWeight": 0.1}},
        "expansion": {},
    }


EVERY_FIELD: dict[Path, Any] = {
    ("training",): {
        "epochs": 3,
        "globalBatchSize": 128,
        "learningRate": 5e-4,
        "minimumLearningRate": 0,
        "warmupSteps": 10,
        "weightDecay": 0.2,
        "beta1": 0.8,
        "beta2": 0.99,
        "epsilon": 1e-8,
        "gradientClipNorm": 1.5,
        "precision": "Bf16",
        "seed": 7,
        "emaDecay": 0.9,
        "schedule": {"type": "WarmupStableDecay", "decayFraction": 0.25},
    },
    ("data", "blockMebibytes"): 8,
    ("data", "windowBlocks"): 8,
    ("data", "randomCropScale"): [0.5, 1],
    ("expansion",): {
        "width": "Slice",
        "depth": "Stack",
        "weights": "Trunk",
        "optimizerState": "Carried",
    },
    ("distillation",): {"weight": 0.25, "surpassWindowSteps": 30},
    ("stages", 0, "fromWeights"): {"uri": "w", "sha256": SHA},
    ("stages", 2, "modelConfig", "quickGelu"): True,
}

# Never edit these to make a test pass: a changed digest trains again what is finished.
GOLDEN: dict[str, list[str]] = {
    "base": [
        "b26a480c8c03fb564ca6dde534cb8a65cbac7731204c215003421677a7423b8d",
        "e9faf439e2f254cfed7589299269e48426c2e54866488290a652678937be9468",
        "436eaad4186a2023e91030b7c028b2bd3a1172f1eabab9c4aae9b771cc445b28",
    ],
    "every field": [
        "97f6e26299a20141c2c39421ce3055141f5e97b57c35e5693611cf6fad67e8be",
        "7d9bb0b85865b8ff1cb5b977f6103d44ec141a9aca1907682bf93e25653adc91",
        "fa6732864699f16630cb35f4e98bf8e673716b24acd0d91ef86dc019d07a87f6",
    ],
    "examples/cc3m.yaml": [
        "36f6dfb21492e5deea07f3faf1f2a3d6dda54d248777bd29f14b30cf9b46b3e4",
        "440535c256c5d983e47717915b7cb12ea6c8c10ffef1fd489a9531462283777f",
        "dd27e5a52c7bf8c0b9a983c4782c154ca2fafcd2b75cd8ada9c23e8d80304a2e",
        "9ecbf6eb0729e4cd18d4361a0f9baec56eea68ec623cfe8692e09afd3166852a",
    ],
    "examples/digits-architectures.yaml": [
        "328b8a4d492c9655c158c687f9474823f04297ab71c1b1763b91457b5c5f507e",
        "6af855b6a5187054cbff190d98c3d91de267fe83126375aec81daa6b1e5a1f79",
        "94cbadb3b698d43c8348e8a2dfbbcafe61f8dcb0658596a93e8b4954834231b7",
    ],
    "examples/digits-classifier.yaml": [
        "328b8a4d492c9655c158c687f9474823f04297ab71c1b1763b91457b5c5f507e",
        "3fe19341171ccc7917e75a8695344e55cb1a5e1fc890468b2d47144d0fec63ac",
        "69f4b1d61f731f0e14eb0a8de242c1cc470f133c5abe1b23d599d55c982aca43",
    ],
    "examples/topics-language-model.yaml": [
        "9d815f63a87eadd68dc122a79101855f2512f398a0c2602ddc5023753409d50c",
        "a30bef7667a8a346ae33eb1dcbfe26e06c0e9e773e432a284906e75eace10a15",
        "5836e9cdc298a29157b4e399116555e50f505e92a62067afec92c77f152b6924",
    ],
}


def test_growth_out_of_existing_weights_is_part_of_the_digest() -> None:
    weights = {("stages", 0, "fromWeights"): {"uri": "s3://a", "sha256": SHA}}
    found = {
        digests({**weights, ("expansion",): {"width": width, "depth": depth}})[0]
        for width in ("Exact", "Slice")
        for depth in ("Identity", "Interleave")
    }
    assert len(found) == 4


def test_existing_weights_have_no_trunk_so_options_about_it_are_not_part_of_their_digest() -> None:
    changes: dict[Path, Any] = {("stages", 0, "fromWeights"): {"uri": "s3://a", "sha256": SHA}}
    plain, of_trunk = (
        digests({**changes, ("expansion",): expansion})
        for expansion in ({}, {"weights": "Trunk", "optimizerState": "Carried"})
    )
    assert plain[0] == of_trunk[0]
    assert plain[1] != of_trunk[1]


def test_a_teacher_that_is_the_predecessor_anyway_changes_nothing() -> None:
    assert digests({("stages", 2, "distillation"): {"teacher": "small"}}) == BASE


def test_only_its_teacher_decides_what_a_stage_that_starts_fresh_learns() -> None:
    fresh = {("stages", 2, "expansion"): {"width": "Fresh"}}
    of_small, of_tiny = (digests({**fresh, ("stages", 2, "from"): name}) for name in ("small", "tiny"))
    taught = digests({**fresh, ("stages", 2, "distillation"): {"teacher": "tiny"}})
    assert of_small[2] != of_tiny[2]
    assert of_tiny == taught, "a stage that is only taught has no predecessor"


def test_golden_digests() -> None:
    assert GOLDEN["base"] == BASE
    assert digests(EVERY_FIELD) == GOLDEN["every field"]


@pytest.mark.parametrize(
    "name", ["cc3m", "digits-architectures", "digits-classifier", "topics-language-model"]
)
def test_golden_digests_of_the_papers_chain_and_of_each_task(name: str) -> None:
    (chain,) = load_chains(EXAMPLES / f"{name}.yaml")
    assert [stage.digest for stage in resolve(chain).stages] == GOLDEN[f"examples/{name}.yaml"]
