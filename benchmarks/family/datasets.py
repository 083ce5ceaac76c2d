"""The data sets of the study, and which parts of them train, select and test.

A data set is prepared once into parts, each some shards; a split of the study names the parts it trains on and the
parts it evaluates on. `selection` is where recipes and rates are chosen, `test` where claims are made.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.family.errors import StudyError
from benchmarks.family.families import ClassifierShape, ClipShape, LanguageModelShape, Shape
from benchmarks.family.metric import Metric
from benchmarks.family.recipes import Settings

SELECTION, TEST = "selection", "test"
SPLITS = (SELECTION, TEST)
PARTS_FILE = "parts.json"
EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDS = 5


@dataclass(frozen=True)
class Parts:
    """What a split of a data set trains on and evaluates on."""

    train: tuple[str, ...]
    evaluation: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Some shards, as `prepare` wrote them."""

    shards: tuple[str, ...]  # file names
    samples: int  # of a language model: tokens
    sha256: str  # of the shards' bytes, in their order


@dataclass(frozen=True)
class DataSet:
    """One data set, and the settings that its models start from."""

    name: str
    title: str
    folds: int
    parts: Callable[[str, int], Parts]  # of a split and a fold
    prepare: Callable[[Path, Path | None], Mapping[str, tuple[str, ...]]]
    metric: Metric  # which decides
    evaluation: Mapping[str, object]  # EvaluationSpec without its shards
    data: Mapping[str, object]  # DataSpec without its shards and size
    batch_size: int
    alone_epochs: int  # alone's full length
    shape: Shape
    spec: Mapping[str, object] = field(default_factory=dict)  # other fields of the chain
    settings: Settings = field(default_factory=Settings)

    @property
    def size_field(self) -> str:
        """Of DataSpec: how much data there is."""
        return "tokens" if isinstance(self.shape, LanguageModelShape) else "samples"

    @property
    def row(self) -> int:
        """How much of it is a row of a batch."""
        return self.shape.context_length if isinstance(self.shape, LanguageModelShape) else 1


def prepare(dataset: DataSet, folder: Path, source: Path | None) -> dict[str, Part]:
    """Write the shards of all parts into `folder`, and a list of them beside. Raises StudyError."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        name: Part(shards, _size(dataset, folder, shards), _sha256(folder, shards))
        for name, shards in dataset.prepare(folder, source).items()
    }
    content = {name: vars(part) for name, part in parts.items()}
    (folder / PARTS_FILE).write_text(json.dumps(content, indent=2) + "\n")
    return parts


def read_parts(folder: Path, name: str) -> dict[str, Part]:
    """The parts that `prepare` listed. Raises StudyError."""
    path = folder / PARTS_FILE
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{path}: can't be read: {error}; run `python -m benchmarks.family prepare --work W {name}`"
        ) from error
    return {
        part: Part(tuple(each["shards"]), each["samples"], each["sha256"]) for part, each in content.items()
    }


def find_dataset(name: str) -> DataSet:
    """The data set of that name. Raises StudyError."""
    try:
        return DATASETS[name]
    except KeyError:
        raise StudyError(f"no data set is called {name!r}; there are {', '.join(DATASETS)}") from None


def _size(dataset: DataSet, folder: Path, shards: tuple[str, ...]) -> int:
    """Pictures; of documents, their bytes and one token more for each."""
    import tarfile

    size = 0
    for shard in shards:
        with tarfile.open(folder / shard) as archive:
            if dataset.size_field == "samples":
                size += sum(member.name.endswith(".png") for member in archive)
            else:
                size += sum(member.size + 1 for member in archive)
    return size


def _sha256(folder: Path, shards: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        digest.update((folder / shard).read_bytes())
    return digest.hexdigest()


def _run_example(script: str, *arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / script, *arguments], text=True, check=False)
    if done.returncode:
        raise StudyError(f"examples/{script} has failed; its message is above")


# ---- digits and topics: in fold f the test part is fold f, so five folds test on everything once


def _fold_parts(split: str, fold: int) -> Parts:
    """Selection never sees fold f: the part after it is held out of the training folds."""
    others = [(fold + ahead) % FOLDS for ahead in range(1, FOLDS)]
    train, evaluation = (others, [fold]) if split == TEST else (others[1:], others[:1])
    return Parts(
        tuple(f"fold-{each}" for each in sorted(train)), tuple(f"fold-{each}" for each in evaluation)
    )


def _prepare_digits(folder: Path, source: Path | None) -> Mapping[str, tuple[str, ...]]:
    if source is not None:
        raise StudyError("digits come with scikit-learn: leave --source out")
    return _prepare_folds("prepare_digits.py", folder)


def _prepare_topics(folder: Path, source: Path | None) -> Mapping[str, tuple[str, ...]]:
    if source is not None:
        raise StudyError("topics come with Python: leave --source out")
    return _prepare_folds("prepare_topics.py", folder)


def _prepare_folds(script: str, folder: Path) -> Mapping[str, tuple[str, ...]]:
    _run_example(script, "--output", folder, "--folds", str(FOLDS))
    return {f"fold-{fold}": (f"fold-{fold}-0000.tar",) for fold in range(FOLDS)}


# ---- Fashion-MNIST: selection trains on 20,000 pictures and holds out 5,000, all of the training set


def _fashion_parts(split: str, _fold: int) -> Parts:
    if split == SELECTION:
        return Parts(("train-a",), ("train-b",))
    return Parts(("train-a", "train-b", "train-c"), ("test",))


def _prepare_fashion(folder: Path, source: Path | None) -> Mapping[str, tuple[str, ...]]:
    options = [] if source is None else ["--input", source]
    _run_example("prepare_fashion_mnist.py", *options, "--output", folder)
    shards = [f"train-{number:04d}.tar" for number in range(24)]  # of 2,500 pictures
    return {
        "train-a": tuple(shards[:8]),
        "train-b": tuple(shards[8:10]),
        "train-c": tuple(shards[10:]),
        "test": tuple(f"val-{number:04d}.tar" for number in range(4)),
    }


# ---- Unifont: glyphs and their names


def _unifont_parts(split: str, _fold: int) -> Parts:
    if split == SELECTION:
        return Parts(("train",), ("select",))
    return Parts(("train", "select"), ("test",))


def _prepare_unifont(folder: Path, source: Path | None) -> Mapping[str, tuple[str, ...]]:
    options = [] if source is None else ["--input", source]
    _run_example("prepare_unifont.py", *options, "--output", folder)
    return {
        part: tuple(path.name for path in sorted(folder.glob(f"{part}-*.tar")))
        for part in ("train", "select", "test")
    }


_CROPS = {"blockMebibytes": 1, "randomCropScale": [0.8, 1.0]}
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

DATASETS: Mapping[str, DataSet] = {
    each.name: each
    for each in (
        DataSet(
            name="digits",
            title="scikit-learn's 1,797 digits",
            folds=FOLDS,
            parts=_fold_parts,
            prepare=_prepare_digits,
            metric=Metric("digits/top1"),
            evaluation={
                "name": "digits",
                "type": "ZeroShot",
                "classes": _DIGITS,
                "templates": ["a photo of the digit {}", "a handwritten {}"],
            },
            data={"captionKeys": ["txt", "txt2"], **_CROPS},
            batch_size=96,
            alone_epochs=30,
            shape=ClipShape(image_size=32, patch_size=8, context_length=16, embed_dim=32),
            settings=Settings(first=30, later=12, lr=3e-3, lr_power=0.8, warmup=20),
        ),
        DataSet(
            name="digit-classes",
            title="scikit-learn's 1,797 digits, as classes",
            folds=FOLDS,
            parts=_fold_parts,
            prepare=_prepare_digits,
            metric=Metric("digits/top1"),
            evaluation={"name": "digits", "type": "Accuracy", "classes": _DIGITS},
            data={"classKey": "cls", **_CROPS},
            batch_size=96,
            alone_epochs=30,
            shape=ClassifierShape(image_size=32, patch_size=8, classes=10),
            spec={"task": "Classification"},
            settings=Settings(first=30, later=8, lr=3e-3, lr_power=0.8, warmup=20),
        ),
        DataSet(
            name="topics",
            title="Python's language reference, by bytes",
            folds=FOLDS,
            parts=_fold_parts,
            prepare=_prepare_topics,
            metric=Metric("topics/loss"),
            evaluation={"name": "topics", "type": "Perplexity"},
            data={},
            batch_size=16,
            alone_epochs=8,
            shape=LanguageModelShape(context_length=128, vocabulary_size=257),
            spec={"task": "LanguageModel"},
            settings=Settings(first=8, later=3, lr=4e-3, lr_power=0.5, warmup=50),
        ),
        DataSet(
            name="fashion-mnist",
            title="Fashion-MNIST",
            folds=1,
            parts=_fashion_parts,
            prepare=_prepare_fashion,
            metric=Metric("clothes/top1"),
            evaluation={
                "name": "clothes",
                "type": "ZeroShot",
                "classes": [
                    "t-shirt",
                    "pair of trousers",
                    "pullover",
                    "dress",
                    "coat",
                    "sandal",
                    "shirt",
                    "sneaker",
                    "bag",
                    "ankle boot",
                ],
                "templates": ["a photo of a {}", "a picture of a {}", "a {} from an online shop"],
            },
            data={"captionKeys": ["txt", "txt2"], **_CROPS},
            batch_size=256,
            alone_epochs=16,
            shape=ClipShape(image_size=28, patch_size=7, context_length=16, embed_dim=48),
            settings=Settings(first=16, later=4, lr=2e-3, lr_power=0.5, warmup=100),
        ),
        DataSet(
            name="unifont",
            title="GNU Unifont's glyphs and their Unicode names",
            folds=1,
            parts=_unifont_parts,
            prepare=_prepare_unifont,
            metric=Metric("glyphs/imageToText@1"),
            evaluation={"name": "glyphs", "type": "Retrieval"},
            data={"captionKeys": ["txt"], **_CROPS},
            batch_size=256,
            alone_epochs=16,
            shape=ClipShape(image_size=32, patch_size=8, context_length=24, embed_dim=64),
            settings=Settings(first=16, later=4, lr=2e-3, lr_power=0.5, warmup=100),
        ),
    )
}
