"""The seam of tasks, as somebody uses it who adds one: a file in the core, a file in the trainer, a registration each.

The toy learns by which quarter turn pictures were turned (Gidaris et al., arXiv 1803.07728). It is written into a copy
of the packages, where nothing else is touched, and a chain of it trains to its manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.squares import SAMPLES, write_squares

ROOT = Path(__file__).parents[1]

CORE = '''
"""Which way up pictures are."""

from modelchain.spec import TaskName
from modelchain.tasks.classification import ClassificationTask


class TurnsTask(ClassificationTask):
    name = TaskName.TURNS
    text = "turn"
    evaluations = ()


TURNS = TurnsTask()
'''

TRAINER = '''
"""Which way up pictures are."""

import dataclasses
from collections.abc import Sequence

import torch

from modelchain_trainer.tasks import classification
from modelchain_trainer.tasks.classification import ClassificationObjective, Rows
from modelchain_trainer.tasks.task import StepBatch


class TurnsObjective(ClassificationObjective):
    def micro_batches(self, batch: StepBatch) -> Sequence[Rows]:
        return [self._turned(rows) for rows in super().micro_batches(batch)]

    @staticmethod
    def _turned(rows: Rows) -> Rows:
        turns = torch.arange(len(rows.labels)) % 4
        images = [torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(rows.images, turns, strict=True)]
        return Rows(torch.stack(images), turns)


TURNS = dataclasses.replace(classification.CLASSIFICATION, objective=TurnsObjective)
'''

# What is registered: in which file, after which line, what.
REGISTRATIONS = (
    ("modelchain/spec.py", '    CLASSIFICATION = "Classification"\n', '    TURNS = "Turns"\n'),
    (
        "modelchain/tasks/__init__.py",
        "from modelchain.tasks.task import Problem, Task\n",
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
)


def add_task(copy: Path) -> None:
    for package in ("modelchain", "trainer/modelchain_trainer"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "modelchain/tasks/turns.py").write_text(CORE)
    (copy / "trainer/modelchain_trainer/tasks/turns.py").write_text(TRAINER)
    for name, before, line in REGISTRATIONS:
        text = (copy / name).read_text()
        assert text.count(before) == 1, f"{name} has no place for a registration after {before!r}"
        (copy / name).write_text(text.replace(before, before + line))


@pytest.mark.slow
def test_a_task_is_a_file_on_each_side_and_a_registration_each(tmp_path: Path) -> None:
    copy, store = tmp_path / "copy", tmp_path / "store"
    add_task(copy)
    vision = {"imageSize": 8, "patchSize": 4, "width": 16, "layers": 1, "headWidth": 16}
    chain = {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": "turns"},
        "spec": {
            "task": "Turns",
            "store": {"uri": str(store)},
            "data": {"shards": [write_squares(tmp_path)], "samples": SAMPLES},
            "training": {"epochs": 2, "globalBatchSize": 16, "logEverySteps": 1},
            "job": {"gpusPerNode": 0},
            "stages": [
                {"name": "small", "classifierConfig": {"classes": 4, "vision": vision}},
                {"name": "large", "classifierConfig": {"classes": 4, "vision": vision | {"width": 32}}},
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
    assert len(list(store.glob("stages/*/manifest.json"))) == 2
    stages = [json.loads(path.read_bytes()) for path in store.glob("stages/*/stage.json")]
    assert {stage["task"] for stage in stages} == {"Turns"}
