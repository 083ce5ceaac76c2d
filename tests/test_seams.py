"""The seams, as somebody uses them who adds a task, a family of models and a type of evaluation sets: a file (or an
entry) in the core, a file in the trainer, a registration each.

The toy task, of images alone, learns by which quarter turn pictures were turned (Gidaris et al., arXiv 1803.07728). The
toy family, an MLP-Mixer, does not grow: it is taught by a transformer. The toy evaluation asks models for the turns of
pictures. All are written into a copy of the packages, where nothing else is touched, and a chain of them trains to its
manifests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.squares import SAMPLES, write_squares
from tests.tar_files import write_tar

ROOT = Path(__file__).parents[1]

CORE = '''
"""Which way up pictures are."""

from modelchain.resolved import ResolvedData, ResolvedTraining
from modelchain.families.family import ImageClassifierConfig
from modelchain.spec import EvaluationType, TaskName
from modelchain.tasks.images import IMAGE_FIELDS
from modelchain.tasks.task import Task


class TurnsTask(Task[ImageClassifierConfig]):
    name = TaskName.TURNS
    config = ImageClassifierConfig
    own_fields = IMAGE_FIELDS | {("distillation", "logitsWeight")}
    evaluations = (EvaluationType.TURNS,)
    distillation = "the divergence of the probabilities of a model and of its teacher, times its weight"

    def loss(self, training: ResolvedTraining) -> str:
        return "the cross-entropy with the turn"

    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        return ()


TURNS = TurnsTask()
'''

TRAINER = '''
"""Which way up pictures are."""

import dataclasses
from collections.abc import Sequence

import torch

from modelchain_trainer.data.source import SampleSource
from modelchain_trainer.tasks import classification
from modelchain_trainer.tasks.classification import ClassificationObjective, Rows
from modelchain_trainer.tasks.local_loss import rows_of
from modelchain_trainer.tasks.task import StepBatch


class TurnsObjective(ClassificationObjective):
    def micro_batches(self, batch: StepBatch) -> Sequence[Rows]:
        parts = rows_of(batch, self.setting.stage.training.micro_batch_size)
        return [self._turned(batch.images[part]) for part in parts]

    @staticmethod
    def _turned(images: torch.Tensor) -> Rows:
        turns = torch.arange(len(images)) % 4
        turned = [torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(images, turns, strict=True)]
        return Rows(torch.stack(turned), turns)


TURNS = dataclasses.replace(classification.CLASSIFICATION, source=SampleSource, objective=TurnsObjective)
'''

FAMILY_CORE = '''
"""MLP-Mixers (Tolstikhin et al., arXiv 2105.01601) that tell classes of images apart."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from modelchain.digest_form import REQUIRED
from modelchain.families.family import Family, FamilyConfig, ImageClassifierConfig, Problem, differs, near_multiple


class MixerConfig(ImageClassifierConfig):
    """A mixer."""

    image_size: Annotated[int, Field(ge=4, le=4096, description="Side of the image, in pixels.")]
    patch_size: Annotated[int, Field(ge=1, le=1024, description="Side of a patch, in pixels.")]
    width: Annotated[int, Field(ge=1, le=65536, description="Channels of a patch.")]
    layers: Annotated[int, Field(ge=1, le=512, description="Pairs of a mixing of patches and one of channels.")]

    @property
    def image_side(self) -> int:
        return self.image_size

    @property
    def feature_size(self) -> int:
        return self.width

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class MixerFamily(Family[MixerConfig]):
    config = MixerConfig
    field = "mixerConfig"
    description = "An MLP-Mixer."
    digest = {"classes": REQUIRED, "imageSize": REQUIRED, "patchSize": REQUIRED, "width": REQUIRED, "layers": REQUIRED}
    weights = "model.safetensors"
    weights_config = "config.json"
    weights_readers = "nobody loads but ModelChain"
    grows = False

    def parameters(self, config: MixerConfig) -> int:
        def linear(size: int) -> int:
            return size * size + size

        embedding = 3 * config.patch_size**2 * config.width + config.width
        return embedding + config.layers * (linear(config.patches) + linear(config.width)) + self.head(config)

    def head(self, config: MixerConfig) -> int:
        return (config.width + 1) * config.classes

    def forward_macs(self, config: MixerConfig, texts: int) -> int:
        mixing = config.patches * config.width * (config.patches + config.width)
        return 3 * config.image_size**2 * config.width + config.layers * mixing + config.width * config.classes

    def size_name(self, config: MixerConfig) -> str:
        return f"mixer-{config.width}x{config.layers}-p{config.patch_size}-{config.classes}"

    def unbuildable(self, config: MixerConfig) -> Iterator[Problem]:
        if config.image_size % config.patch_size:
            remedy = near_multiple("imageSize", config.image_size, config.patch_size)
            yield ("patchSize",), "patches do not divide the image", remedy

    def unteachable(self, student: MixerConfig, teacher: FamilyConfig) -> Iterator[Problem]:
        assert isinstance(teacher, ImageClassifierConfig)
        yield from differs(("classes",), "the number of classes", teacher.classes, student.classes)


MIXER = MixerFamily()
'''

FAMILY_TRAINER = '''
"""MLP-Mixers."""

import torch
from torch import Tensor, nn

from modelchain.families.mixer import MixerConfig
from modelchain_trainer.model.family import ClassifierModel, Family


class Mixing(nn.Module):
    def __init__(self, patches: int, width: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.patches = nn.Linear(patches, patches, device=device)
        self.channels = nn.Linear(width, width, device=device)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.patches(x_BND.transpose(1, 2)).relu().transpose(1, 2)
        return x_BND + self.channels(x_BND).relu()


class Mixer(ClassifierModel[MixerConfig]):
    def __init__(self, config: MixerConfig, device: torch.device | str | None) -> None:
        super().__init__()
        self.config = config
        size = config.patch_size
        self.embedding = nn.Conv2d(3, config.width, size, size, device=device)
        self.mixings = nn.ModuleList([Mixing(config.patches, config.width, device) for _ in range(config.layers)])
        self.head = nn.Linear(config.width, config.classes, device=device)

    def forward(self, images_BCHW: Tensor, kept_BK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x_BND = self.embedding(images_BCHW).flatten(2).transpose(1, 2)
        for mixing in self.mixings:
            x_BND = mixing(x_BND)
        features_BD = x_BND.mean(dim=1)
        return features_BD, self.head(features_BD)


def initialise(model: Mixer, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)


MIXER = Family(
    config=MixerConfig,
    build=Mixer,
    to_config=lambda config: config.model_dump(by_alias=True),
    from_config=lambda content, where: MixerConfig.model_validate(content),
    initialise=initialise,
)
'''

EVALUATION_CORE = """        EvaluationType.TURNS: Evaluation(
            metrics=lambda _: ("turns",),
            leading=("turns",),
            names={"turns": "Share of turns that are told"},
            data_fields=frozenset({"classKey", "imageKeys"}),
        ),
"""

EVALUATION_TRAINER = '''
"""Which way up pictures are: how often a model says it."""

from dataclasses import dataclass

import torch

from modelchain.spec import EvaluationSpec
from modelchain_trainer.evaluation.accuracy import classify
from modelchain_trainer.evaluation.evaluation_set import EvaluationSet, EvaluationSource, Opening, Run
from modelchain_trainer.evaluation.images import open_images
from modelchain_trainer.model.family import AnyModel


@dataclass(frozen=True)
class TurnsSet(EvaluationSet):
    spec: EvaluationSpec
    source: EvaluationSource

    @classmethod
    def open(cls, spec: EvaluationSpec, opening: Opening) -> "TurnsSet":
        return cls(spec, open_images(spec, opening))

    def measure(self, model: AnyModel, run: Run) -> dict[str, float]:
        right = torch.zeros(2, dtype=torch.float64)
        readable = torch.zeros(len(self.source), dtype=torch.int32)
        for batch in self.source.batches(run.group.rank, run.group.world_size):
            readable[batch.indices] = 1
            for turn in range(4):
                said = classify(model, torch.rot90(batch.images, turn, (2, 3)), run=run).argmax(dim=1)
                right += torch.tensor([int((said == turn).sum()), len(said)])
        self.source.check_readable(run.group.sum(readable).bool(), self.spec.name)
        told, asked = run.group.sum(right).tolist()
        return {"turns": told / asked}
'''

MIXER = {"classes": 4, "imageSize": 12, "patchSize": 4, "width": 8, "layers": 2}
FILES = {
    "modelchain/tasks/turns.py": CORE,
    "trainer/modelchain_trainer/tasks/turns.py": TRAINER,
    "trainer/modelchain_trainer/evaluation/turns.py": EVALUATION_TRAINER,
    "modelchain/families/mixer.py": FAMILY_CORE,
    "trainer/modelchain_trainer/model/mixer.py": FAMILY_TRAINER,
}
# What is registered: in which file, after which text, what.
REGISTRATIONS = (
    ("modelchain/spec.py", '    CLASSIFICATION = "Classification"\n', '    TURNS = "Turns"\n'),
    ("modelchain/spec.py", '    FINE_TUNE = "FineTune"\n', '    TURNS = "Turns"\n'),
    (
        "modelchain/evaluations.py",
        "Mapping[EvaluationType, Evaluation]] = MappingProxyType(\n    {\n",
        EVALUATION_CORE,
    ),
    (
        "trainer/modelchain_trainer/evaluation/sets.py",
        "from modelchain_trainer.evaluation.retrieval import RetrievalSet\n",
        "from modelchain_trainer.evaluation.turns import TurnsSet\n",
    ),
    (
        "trainer/modelchain_trainer/evaluation/sets.py",
        "        EvaluationType.RETRIEVAL: RetrievalSet.open,\n",
        "        EvaluationType.TURNS: TurnsSet.open,\n",
    ),
    (
        "modelchain/tasks/__init__.py",
        "from modelchain.tasks.task import Task\n",
        "from modelchain.tasks.turns import TURNS\n",
    ),
    ("modelchain/tasks/__init__.py", "for task in (CLIP, ", "TURNS, "),
    (
        "trainer/modelchain_trainer/tasks/__init__.py",
        "from modelchain_trainer.tasks.task import Task\n",
        "from modelchain_trainer.tasks.turns import TURNS\n",
    ),
    (
        "trainer/modelchain_trainer/tasks/__init__.py",
        "    TaskName.CLIP: CLIP,\n",
        "    TaskName.TURNS: TURNS,\n",
    ),
    (
        "modelchain/families/__init__.py",
        "from modelchain.families.clip import CLIP, DualEncoderConfig, ModelConfig, TextSpec\n",
        "from modelchain.families.mixer import MIXER\n",
    ),
    ("modelchain/families/__init__.py", "= (CLIP, CLASSIFIER, ", "MIXER, "),
    (
        "trainer/modelchain_trainer/model/families.py",
        "from modelchain_trainer.model.layout import Layout\n",
        "from modelchain_trainer.model.mixer import MIXER\n",
    ),
    ("trainer/modelchain_trainer/model/families.py", "in (CLIP, CLASSIFIER, ", "MIXER, "),
)


def add(copy: Path) -> None:
    for package in ("modelchain", "trainer/modelchain_trainer"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        (copy / name).write_text(text)
    for name, before, line in REGISTRATIONS:
        text = (copy / name).read_text()
        assert text.count(before) == 1, f"{name} has no place for a registration after {before!r}"
        (copy / name).write_text(text.replace(before, before + line))


@pytest.mark.slow
def test_a_task_a_family_and_an_evaluation_are_a_file_on_each_side_and_a_registration_each(
    tmp_path: Path,
) -> None:
    copy, store = tmp_path / "copy", tmp_path / "store"
    add(copy)
    shards = write_squares(tmp_path)
    for name in ("000.tar", "001.tar"):
        with tarfile.open(tmp_path / name) as tar:
            pictures = [m for m in tar if m.name.endswith(".png")]
            members = [(m.name, tar.extractfile(m).read()) for m in pictures]  # pyright: ignore[reportOptionalMemberAccess]
        write_tar(tmp_path / "images" / name, members)
    vision = {"imageSize": 8, "patchSize": 4, "width": 16, "layers": 1, "headWidth": 16}
    chain = {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": "turns"},
        "spec": {
            "task": "Turns",
            "store": {"uri": str(store)},
            "data": {"shards": [f"{tmp_path}/images/{{000..001}}.tar"], "samples": SAMPLES},
            "evaluation": [{"name": "squares", "type": "Turns", "data": {"shards": [shards]}}],
            "training": {"epochs": 2, "globalBatchSize": 16, "logEverySteps": 1},
            "job": {"gpusPerNode": 0},
            "stages": [
                {"name": "small", "classifierConfig": {"classes": 4, "vision": vision}},
                {"name": "large", "classifierConfig": {"classes": 4, "vision": vision | {"width": 32}}},
                {"name": "mixer", "mixerConfig": MIXER, "expansion": {"width": "Fresh"}},
            ],
        },
    }
    file = tmp_path / "chain.json"
    file.write_text(json.dumps(chain))
    environment = os.environ | {"PYTHONPATH": f"{copy}:{copy / 'trainer'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "modelchain", "run", str(file)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(store.glob("stages/*/manifest.json"))) == 3
    stages = [json.loads(path.read_bytes()) for path in store.glob("stages/*/stage.json")]
    assert {stage["task"] for stage in stages} == {"Turns"}
    mixer = next(stage for stage in stages if stage["name"] == "mixer")
    assert mixer["modelConfig"] == MIXER
    assert mixer["teacher"]["name"] == "large"
    lines = [json.loads(line) for line in _metrics(store, mixer).splitlines()]
    assert any(line["loss"]["distillation"] > 0 for line in lines if "loss" in line)
    manifests = [json.loads(path.read_bytes()) for path in store.glob("stages/*/manifest.json")]
    assert all(0 <= manifest["metrics"]["squares/turns"] <= 1 for manifest in manifests)


def _metrics(store: Path, stage: dict[str, str]) -> str:
    return "".join(path.read_text() for path in (store / stage["folder"]).glob("attempts/*/metrics-*.jsonl"))
