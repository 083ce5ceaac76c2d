"""A chain whose artifacts are written without training: curves as they look, in the formats of the contract."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image, ImageDraw

from modelchain.artifacts import (
    MANIFEST,
    PROGRESS,
    STAGE,
    WEIGHTS,
    FileEntry,
    Manifest,
    Progress,
    attempt_folder,
    chain_key,
)
from modelchain.cost import stage_macs
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.spec import ModelChain
from modelchain.status import ChainPhase, ChainStatus, StagePhase, StageStatus, record_of
from modelchain.store import Store
from modelchain.store.folder import FolderStore

COMPUTED = 0.6  # of the multiply-accumulates that are counted
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WIDTHS = ((64, 2), (128, 3), (256, 4), (256, 6), (384, 6), (512, 8), (768, 12))
ZERO_SHOT = {
    "name": "digits",
    "type": "ZeroShot",
    "data": {"shards": ["digits-test.tar"]},
    "classes": list(CLASSES),
    "everySteps": 20,
}
RETRIEVAL = {"name": "captions", "type": "Retrieval", "data": {"shards": ["captions.tar"]}, "everySteps": 40}


def document(
    store: Path,
    *,
    stages: int = 3,
    name: str = "digits",
    evaluation: tuple[dict[str, object], ...] = (ZERO_SHOT,),
    only: int | None = None,
    alone_epochs: int = 24,
) -> dict[str, object]:
    """A chain as a user writes it.

    `only`: just the model of that stage, alone, for `alone_epochs`, as many as the first.
    """
    blocks: list[dict[str, object]] = []
    for i in range(stages) if only is None else (only,):
        width, layers = WIDTHS[i]
        block: dict[str, object] = {
            "name": f"vit-{'tsmblxh'[i]}",
            "training": {"epochs": max(4, 12 - 2 * i) if blocks else 24 if only is None else alone_epochs},
        }
        block["modelConfig"] = {
            "embedDim": 64,
            "vision": {"imageSize": 32, "patchSize": 8, "width": width, "layers": layers, "headWidth": 32},
            "text": {"contextLength": 16, "width": width, "layers": layers, "heads": width // 32},
        }
        blocks.append(block)
    return {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": name},
        "spec": {
            "store": {"uri": str(store)},
            "data": {"shards": ["digits-{0..3}.tar"], "samples": 1500},
            "evaluation": list(evaluation),
            "training": {"globalBatchSize": 100},
            "stages": blocks,
        },
    }


def resolved(document: dict[str, object]) -> ResolvedChain:
    """The chain with its digests."""
    return resolve(ModelChain.model_validate(document))


@dataclass
class Training:
    """How a made-up training goes; the defaults are a chain that went well."""

    until: dict[str, float] = field(default_factory=dict)  # share of a stage that was done; 1 by default
    final: tuple[float, ...] = (0.868, 0.921, 0.953, 0.958, 0.964, 0.969, 0.972)
    lost: float = 0.0  # accuracy that growth loses
    alone: float = 0.006  # by how much a model trained alone is better, for the baseline's epochs
    poor: tuple[str, ...] = ()  # models that alone do not become as good
    alone_matched: float = -0.012  # and for the chain's compute
    metrics: bool = True
    predictions: bool = True
    classes: tuple[str, ...] = CLASSES
    trained_by: dict[str, str] = field(default_factory=dict)  # stage: another chain
    killed: dict[str, int] = field(default_factory=dict)  # stage: attempts before the one that counts
    corrupt: dict[str, int] = field(default_factory=lambda: {"undecodable image": 3})
    record: bool = True


def train(chain: ResolvedChain, how: Training | None = None) -> Store:
    """Write what training the chain would have left in its store."""
    how = how or Training()
    store = FolderStore(Path(chain.store.uri))
    start = 0.1
    for i, stage in enumerate(chain.stages):
        share = how.until.get(stage.name, 1.0)
        if share > 0:
            _train_stage(store, chain, stage, how, i, start, share)
        start = how.final[i] - how.lost
    for run in chain.baseline.runs if chain.baseline is not None else ():
        stage = chain.stage(run.run)
        if stage in chain.baselines and (share := how.until.get(stage.name, 1.0)) > 0:
            place = chain.stages.index(chain.stage(run.stage))
            better = how.alone if run.budget_macs is None else how.alone_matched
            final = how.final[place] + (-0.04 if run.stage in how.poor else better)
            ends = replace(how, final=(*how.final[:place], final, *how.final[place + 1 :]))
            _train_stage(store, chain, stage, ends, place, 0.1, share)
    if how.record:
        record = record_of(chain, _status(chain, how), 1_760_000_000)
        store.put(
            chain_key(chain.chain.namespace, chain.chain.name), record.model_dump_json(by_alias=True).encode()
        )
    return store


def _train_stage(
    store: Store,
    chain: ResolvedChain,
    stage: ResolvedStage,
    how: Training,
    i: int,
    start: float,
    share: float,
) -> None:
    noise = random.Random(i)
    steps = max(1, round(stage.training.steps * share))
    store.put(f"{stage.folder}/{STAGE}", stage.to_json().encode())
    killed = how.killed.get(stage.name, 0)
    lines = _lines(stage, steps, start, how.final[i], noise)
    for number in range(killed):
        dead = attempt_folder(stage.folder, f"uid-{number + 1}-dead")
        part = [line for line in lines if line["step"] <= steps * (number + 1) // (killed + 1)]
        store.put(f"{dead}/metrics-{0:010d}.jsonl", _jsonl(part))
        store.put(f"{dead}/{PROGRESS}", _progress(stage, steps // 2, how))
    token = f"uid-{killed + 1}-beef"
    attempt = attempt_folder(stage.folder, token)
    if how.metrics:
        half = steps // 2
        store.put(f"{attempt}/metrics-{0:010d}.jsonl", _jsonl([x for x in lines if x["step"] <= half]))
        store.put(f"{attempt}/metrics-{half:010d}.jsonl", _jsonl([x for x in lines if x["step"] > half]))
    store.put(f"{attempt}/{PROGRESS}", _progress(stage, steps, how))
    if how.predictions and stage.evaluation:
        store.put(f"{attempt}/predictions.json", _predictions(how, i, how.final[i]))
    if share < 1:
        return
    weights = f"weights of {stage.name}".encode()
    store.put(f"{attempt}/{WEIGHTS}", weights)
    entry = FileEntry(
        path=f"attempts/{token}/{WEIGHTS}", bytes=len(weights), sha256=hashlib.sha256(weights).hexdigest()
    )
    manifest = Manifest(
        digest=stage.digest,
        stage=stage.name,
        model=stage.model,
        chain=how.trained_by.get(stage.name, f"{chain.chain.namespace}/{chain.chain.name}"),
        attempt=token,
        predecessor=stage.predecessor.digest if stage.predecessor else None,
        files=(entry,),
        metrics=_metrics(stage, how.final[i], 1.0),
        steps=steps,
        samples=steps * stage.training.global_batch_size,
        macs=float(stage_macs(stage)),
        computed_macs=COMPUTED * stage_macs(stage),
        started_at="2026-03-01T10:00:00Z",
        completed_at="2026-03-01T10:05:00Z",
        train_seconds=_seconds(stage, steps),
        versions={"modelchain": "0.1.0", "torch": "2.9.0", "python": "3.12.1"},
    )
    store.put(f"{stage.folder}/{MANIFEST}", manifest.model_dump_json(by_alias=True).encode())


def _lines(stage: ResolvedStage, steps: int, start: float, final: float, noise: random.Random) -> list[dict]:
    lines: list[dict] = []
    cadence = min((spec.every_steps or 10**9 for spec in stage.evaluation), default=10**9)
    for step in range(steps + 1):
        share = step / stage.training.steps
        macs = stage_macs(stage, until_step=step)
        place = {"step": step, "samples": 100 * step, "macs": macs, "time": _seconds(stage, step)}
        place["wallTime"] = 1e9 + step
        if step % 5 == 0 and step:
            task = (
                0.6 + 2.6 * math.exp(-(6 if stage.predecessor is None else 3) * share) + noise.gauss(0, 0.06)
            )
            if stage.predecessor is not None:
                task = 0.62 + 0.25 * math.exp(-4 * share) - 0.04 * stage.index + noise.gauss(0, 0.04)
            distillation = 0.0 if stage.predecessor is None else 0.05 + 0.2 * math.exp(-5 * share)
            lines.append(
                {
                    "kind": "train",
                    **place,
                    "computedMacs": COMPUTED * macs,
                    "epoch": step / stage.training.steps_per_epoch,
                    "learningRate": 1e-3,
                    "loss": {"total": task + distillation, "task": task, "distillation": distillation},
                    "distillationWeight": 1.0,
                    "logitScale": 14.3,
                    "gradientNorm": 0.8,
                    "samplesPerSecond": 900.0,
                    "dataWaitFraction": 0.02,
                }
            )
        if stage.evaluation and (step % cadence == 0 or step == stage.training.steps):
            reached = final - (final - start) * math.exp(-5 * share) + (noise.gauss(0, 0.004) if step else 0)
            value = final if step == stage.training.steps else start if step == 0 else reached
            lines.append({"kind": "evaluation", **place, "metrics": _metrics(stage, value, share)})
    return lines


def _metrics(stage: ResolvedStage, value: float, share: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for spec in stage.evaluation:
        if spec.type == "ZeroShot":
            found |= {f"{spec.name}/top1": value, f"{spec.name}/top5": min(1.0, value + 0.05)}
        else:
            found |= {f"{spec.name}/loss": 2.0 - share, f"{spec.name}/imageToText@1": value / 2}
            found |= {f"{spec.name}/textToImage@1": value / 2.2, f"{spec.name}/imageToText@5": value}
    return found


def _seconds(stage: ResolvedStage, step: int) -> float:
    return stage_macs(stage, until_step=step) / 40e9


def _jsonl(lines: list[dict]) -> bytes:
    return b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)


def _progress(stage: ResolvedStage, step: int, how: Training) -> bytes:
    return (
        Progress(
            phase="Training",
            step=step,
            steps=stage.training.steps,
            sequence=step,
            corrupt_samples=how.corrupt,
            updated_at="2026-03-01T10:05:00Z",
        )
        .model_dump_json(by_alias=True)
        .encode()
    )


def _predictions(how: Training, seed: int, accuracy: float) -> bytes:
    chance = random.Random(100 + seed)
    samples = []
    for number in range(24):
        label = number % len(how.classes)
        wrong = how.classes[(label + 3) % len(how.classes)]
        other = how.classes[(label + 5) % len(how.classes)]
        sure = 0.5 + chance.random() * 0.49
        right = chance.random() < accuracy - (0.15 if seed == 0 else 0)
        names = [how.classes[label], wrong, other] if right else [wrong, how.classes[label], other]
        rest = 1 - sure
        top = [[names[0], sure], [names[1], rest * 0.7], [names[2], rest * 0.2]]
        samples.append({"png": base64.b64encode(digit_png(label)).decode(), "label": label, "top": top})
    return json.dumps({"set": "digits", "classes": list(how.classes), "samples": samples}).encode()


def digit_png(digit: int) -> bytes:
    """A picture of a digit."""
    image = Image.new("RGB", (28, 28), "black")
    ImageDraw.Draw(image).text((8, 2), str(digit), fill="white", font_size=22)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _status(chain: ResolvedChain, how: Training) -> ChainStatus:
    stages: list[StageStatus] = []
    for stage in chain.stages:
        share = how.until.get(stage.name, 1.0)
        phase = StagePhase.COMPLETE if share == 1 else StagePhase.RUNNING if share else StagePhase.WAITING
        stages.append(
            StageStatus(
                name=stage.name,
                phase=phase,
                digest=stage.digest,
                failures=min(1, how.killed.get(stage.name, 0)),
            )
        )
    done = all(stage.phase is StagePhase.COMPLETE for stage in stages)
    return ChainStatus(phase=ChainPhase.COMPLETE if done else ChainPhase.RUNNING, stages=tuple(stages))
