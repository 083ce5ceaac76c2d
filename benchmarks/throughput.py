"""Training speed, side by side with open_clip's own training program.

    python benchmarks/throughput.py                       # a small model, on the CPU
    python benchmarks/throughput.py --device cuda --model ViT-B-16 --teacher ViT-S-16 --image-size 224 \
        --batch-size 512 --precision bf16 --workers 12 --warmup-steps 20 --steps 60

Both programs run as a user would start them, `python -m modelchain_trainer` and `python -m
open_clip_train.main`, one after the other and in turn, on the same webdataset shards (JPEG pictures and one
caption each, made here), with the same model, global batch and precision, the same teacher's weights, both
with the teacher's forward pass in every step. Each trains with its own loss, and the report says which: the
contrastive loss in both, and besides open_clip's cross-entropy between the teacher's and the student's
logits, here the squared distance of embeddings.

Speed is that of whole steps by the wall clock, from the end of the warm-up to the last step.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from benchmarks.pictures import write_shards
from modelchain import catalogue
from modelchain.artifacts import Manifest
from modelchain.commit import commit_stage, hash_file
from modelchain.families import ModelConfig
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedStage
from modelchain.spec import ModelChain
from modelchain.store import open_store

SHARDS = 16
# Both wait without spinning, as our launcher has it: a thread that spins takes the core of one that decodes.
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
PROGRESS = re.compile(r"\[\s*(\d+)/.*Data \(t\): ([\d.]+) Batch \(t\): ([\d.]+)")


@dataclass(frozen=True)
class Mark:
    """Where a run stood at some moment."""

    step: int  # steps finished
    seconds: float  # wall clock
    waited: float  # seconds spent waiting for data since the last mark


@dataclass(frozen=True)
class Run:
    """What one run of one program showed, after its warm-up."""

    samples_per_second: float
    data_wait_fraction: float
    memory_bytes: int  # largest sum of proportional set sizes of its processes
    gpu_memory_bytes: int  # largest amount in use on the GPU


@dataclass(frozen=True)
class Workplace:
    """What both programs work on."""

    folder: Path
    shards: str
    stage: ResolvedStage
    teacher: Path | None  # folders that open_clip loads as local-dir:
    student: Path


Runner = Callable[[Workplace, argparse.Namespace, int], Run]


def main() -> None:
    options = parse_arguments()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="throughput-") as name:
        workplace = prepare(Path(name), options)
        runs: dict[str, list[Run]] = {"modelchain": [], "open_clip": []}
        for number in range(options.repeats):
            for program, run in (("modelchain", run_modelchain), ("open_clip", run_open_clip)):
                result = run(workplace, options, number)
                runs[program].append(result)
                print(
                    f"run {number + 1} of {options.repeats}, {program}: "
                    f"{result.samples_per_second:.2f} samples/s",
                    file=sys.stderr,
                )
    report = summary(runs, options, load)
    print(json.dumps(report, indent=2) if options.output == "json" else as_text(report))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Those of the command line, or these."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="ViT-C-16", help="model that is trained (modelchain models)")
    parser.add_argument("--teacher", default="ViT-T-16", help="its teacher, or none")
    parser.add_argument("--image-size", type=int, default=112, help="side of the images, in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--shards", metavar="PATTERN", help="webdataset shards of --samples samples; made here if not given"
    )
    parser.add_argument("--caption-words", type=int, default=10, help="mean length (CC3M's is 10)")
    parser.add_argument(
        "--samples", type=int, default=2048, help="samples in the shards; seen again and again"
    )
    parser.add_argument("--picture-size", type=int, nargs=2, default=[400, 300], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile in both")
    parser.add_argument(
        "--workers", type=int, default=2, help="threads here, processes there, that make batches"
    )
    parser.add_argument("--warmup-steps", type=int, default=6, help="steps that are not measured")
    parser.add_argument("--steps", type=int, default=18, help="steps that are measured")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each program, in turn")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    return parser.parse_args(arguments)


def prepare(folder: Path, options: argparse.Namespace) -> Workplace:
    """Shards, a finished teacher in a store if there is to be one, and the stage that learns from it."""
    from modelchain_trainer.model.build import build_model
    from modelchain_trainer.model.weights import save_weights

    shards = options.shards or write_shards(
        folder / "data",
        shards=SHARDS,
        samples=options.samples,
        picture_size=options.picture_size,
        caption_words=options.caption_words,
    )
    names = [options.model] if options.teacher == "none" else [options.teacher, options.model]
    configs = [sized(catalogue.find(name), options.image_size) for name in names]
    *teachers, stage = resolve(chain(folder / "store", shards, configs, options)).stages
    teacher = None
    if teachers:
        teacher = folder / "teacher"
        save_weights(build_model(configs[0], seed=1), configs[0], teacher)
        commit(teachers[0], teacher)
    student = folder / "student"
    save_weights(build_model(configs[-1], seed=2), configs[-1], student)
    training = stage.training.model_copy(update={"steps": options.warmup_steps + options.steps})
    return Workplace(folder, shards, stage.model_copy(update={"training": training}), teacher, student)


def commit(stage: ResolvedStage, weights: Path) -> None:
    """Put these weights into the store as the finished stage's."""
    store = open_store(stage.store)
    files = []
    for path in sorted(weights.iterdir()):
        store.upload(f"{stage.folder}/attempts/made/{path.name}", path)
        files.append(hash_file(path).model_copy(update={"path": f"attempts/made/{path.name}"}))
    manifest = Manifest(
        digest=stage.digest,
        stage=stage.name,
        model=stage.model,
        chain="default/throughput",
        attempt="made",
        files=tuple(files),
        metrics={},
        steps=0,
        samples=0,
        macs=0,
        started_at="1970-01-01T00:00:00Z",
        completed_at="1970-01-01T00:00:00Z",
        train_seconds=0,
        versions={},
    )
    commit_stage(store, stage.folder, manifest)


def chain(store: Path, shards: str, configs: list[ModelConfig], options: argparse.Namespace) -> ModelChain:
    """A stage for each model; of two, the first will be made, not trained."""
    steps = options.warmup_steps + options.steps
    steps_per_epoch = options.samples // options.batch_size
    training = {
        "epochs": -(-steps // steps_per_epoch),
        "globalBatchSize": options.batch_size,
        "precision": options.precision.capitalize(),
        "warmupSteps": 10,
        "learningRate": 1e-4,
        "logEverySteps": log_every(options),
        "checkpointEverySteps": 10**6,
        "dataWorkers": options.workers,
        "compile": options.compile,
    }
    names = ["teacher", "student"][-len(configs) :]
    stages = [
        {"name": name, "modelConfig": config.model_dump(by_alias=True)}
        for name, config in zip(names, configs, strict=True)
    ]
    spec = {
        "store": {"uri": str(store)},
        "data": {"shards": [shards], "samples": options.samples},
        "training": training,
        "distillation": {"weight": 1.0},
        "job": {"gpusPerNode": 0 if options.device == "cpu" else 1},
        "stages": stages,
    }
    document = {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": "throughput"},
        "spec": spec,
    }
    return ModelChain.model_validate(document)


def log_every(options: argparse.Namespace) -> int:
    """Steps between two marks, for both programs: each makes a GPU wait."""
    return 1 if options.device == "cpu" else 5


def sized(config: ModelConfig, image_size: int) -> ModelConfig:
    return config.model_copy(update={"vision": config.vision.model_copy(update={"image_size": image_size})})


def run_modelchain(workplace: Workplace, options: argparse.Namespace, number: int) -> Run:
    """One whole stage as a job would run it, in a store of its own; its own metrics say how fast it was."""
    digest = f"{number:064x}"  # a stage that nobody has trained
    folder = f"stages/run-{number}"
    stage = workplace.stage.model_copy(update={"digest": digest, "folder": folder})
    path = workplace.folder / f"stage-{number}.json"
    path.write_text(stage.to_json())
    environment = ENVIRONMENT | {"MODELCHAIN_DEVICE": options.device}
    command = [sys.executable, "-m", "modelchain_trainer", "--stage", str(path)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        memory = MemoryWatch(process.pid, options.device)
        assert process.stdout is not None
        output = process.stdout.read()
    memory.stop()
    if process.returncode != 0:
        raise SystemExit(f"modelchain_trainer ended with {process.returncode}:\n{output}")
    marks: list[Mark] = []
    for metrics in sorted((workplace.folder / "store" / folder).glob("attempts/*/metrics-*.jsonl")):
        for line in map(json.loads, metrics.read_text().splitlines()):
            if line["kind"] == "train":
                earlier = marks[-1].seconds if marks else line["wallTime"]
                waited = line["dataWaitFraction"] * (line["wallTime"] - earlier)
                marks.append(Mark(line["step"], line["wallTime"], waited))
    return measured(marks, memory, options)


def run_open_clip(workplace: Workplace, options: argparse.Namespace, number: int) -> Run:
    """One epoch of open_clip's program; the moments when its lines of progress appear say how fast it was."""
    every = log_every(options)
    steps = options.warmup_steps + options.steps + every
    flags = {
        "--dataset-type": "webdataset",
        "--train-data": workplace.shards,
        "--train-num-samples": steps * options.batch_size,
        "--model": f"local-dir:{workplace.student}",
        "--batch-size": options.batch_size,
        "--precision": "fp32" if options.precision == "fp32" else "amp_bf16",
        "--device": options.device,
        "--workers": options.workers,
        "--epochs": 1,
        "--warmup": 10,
        "--lr": 1e-4,
        "--beta1": 0.9,
        "--beta2": 0.98,
        "--eps": 1e-6,
        "--wd": 0.1,
        "--log-every-n-steps": every,
        "--logs": workplace.folder / "logs",
        "--name": f"run-{number}",
        "--save-frequency": 0,
    }
    if workplace.teacher is not None:
        flags["--distill-model"] = f"local-dir:{workplace.teacher}"
        flags["--distill-pretrained"] = "local"  # ignored for local-dir:, but without it nothing is distilled
    command = [sys.executable, "-m", "open_clip_train.main"]
    command += [str(part) for flag in flags.items() for part in flag]
    command += ["--torchcompile"] if options.compile else []
    marks: list[Mark] = []
    output: list[str] = []
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        memory = MemoryWatch(process.pid, options.device)
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if found := PROGRESS.search(line):
                step = int(found[1]) // options.batch_size
                earlier = marks[-1].step if marks else 0
                marks.append(Mark(step, time.time(), float(found[2]) * (step - earlier)))
    memory.stop()
    if process.returncode != 0:
        raise SystemExit(f"open_clip_train ended with {process.returncode}:\n{''.join(output)}")
    return measured(marks, memory, options)


def measured(marks: list[Mark], memory: MemoryWatch, options: argparse.Namespace) -> Run:
    """The speed between the first mark after the warm-up and the last one."""
    marks = [mark for mark in marks if mark.step >= options.warmup_steps]
    assert len(marks) >= 2, "too few steps"
    seconds = marks[-1].seconds - marks[0].seconds
    samples = (marks[-1].step - marks[0].step) * options.batch_size
    waited = sum(mark.waited for mark in marks[1:])
    return Run(samples / seconds, min(1.0, waited / seconds), memory.peak_bytes, memory.peak_gpu_bytes)


class MemoryWatch:
    """Looks twice a second how much memory a process and its descendants take, shared pages split fairly."""

    def __init__(self, pid: int, device: str) -> None:
        self.peak_bytes = 0
        self.peak_gpu_bytes = 0
        self._pid = pid
        self._gpu = device == "cuda"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            self.peak_bytes = max(self.peak_bytes, sum(map(proportional_set_size, family(self._pid))))
            if self._gpu:
                self.peak_gpu_bytes = max(self.peak_gpu_bytes, gpu_memory_in_use())


def family(pid: int) -> list[int]:
    """The process and all its descendants that live now."""
    members = [pid]
    for member in members:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # it has just ended
    return members


def proportional_set_size(pid: int) -> int:
    """Bytes of memory of a process, pages shared by n processes counted as 1/n."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def gpu_memory_in_use() -> int:
    """Bytes in use on the first GPU, by everybody."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) * 2**20


def summary(runs: dict[str, list[Run]], options: argparse.Namespace, load: float) -> dict[str, object]:
    """All that was set and seen. `ratio` is our speed over open_clip's, each the mean of its runs.

    `load` is the machine's load average before the first run: others' work spoils the figures.
    """
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    device = f"{len(os.sched_getaffinity(0))} CPU cores"
    if options.device == "cuda":
        import torch

        device = torch.cuda.get_device_name()
    speeds = {program: mean(run.samples_per_second for run in results) for program, results in runs.items()}
    programs = {
        program: {
            "samplesPerSecond": speeds[program],
            "dataWaitFraction": mean(run.data_wait_fraction for run in results),
            "memoryBytes": max(run.memory_bytes for run in results),
            "gpuMemoryBytes": max(run.gpu_memory_bytes for run in results),
            "runs": [asdict(run) for run in results],
        }
        for program, results in runs.items()
    }
    losses = {
        "modelchain": "contrastive + squared distance of embeddings",
        "open_clip": "contrastive + cross-entropy of teacher's and student's logits",
    }
    if options.teacher == "none":
        losses = dict.fromkeys(losses, "contrastive")
    return {
        "settings": settings | {"runsOn": device, "loadAverageBefore": load},
        "versions": {name: version(name) for name in ("torch", "open_clip_torch", "webdataset")},
        "losses": losses,
        "programs": programs,
        "ratio": speeds["modelchain"] / speeds["open_clip"],
    }


def as_text(report: dict[str, object]) -> str:
    """The report for people."""
    settings, programs, losses = report["settings"], report["programs"], report["losses"]
    assert isinstance(settings, dict)
    assert isinstance(programs, dict)
    assert isinstance(losses, dict)
    taught = "" if settings["teacher"] == "none" else f" taught by {settings['teacher']}"
    what = (
        f"{settings['model']}{taught}, {settings['image_size']} px, batch "
        f"{settings['batch_size']}, one caption of about {settings['caption_words']} words, "
        f"{settings['precision']}, {settings['runsOn']}, {settings['workers']} data workers"
    )
    lines = [
        what,
        "",
        f"{'':12}{'samples/s':>10}{'waiting':>9}{'memory':>10}{'GPU':>10}  loss",
    ]
    for program, figures in programs.items():
        memory, gpu = (figures[name] / 2**30 for name in ("memoryBytes", "gpuMemoryBytes"))
        speed, waiting = figures["samplesPerSecond"], figures["dataWaitFraction"]
        lines.append(
            f"{program:12}{speed:10.2f}{waiting:9.1%}{memory:6.2f} GiB{gpu:6.2f} GiB  {losses[program]}"
        )
    load = settings["loadAverageBefore"]
    lines += ["", f"ratio {report['ratio']:.2f}x (load average before: {load:.1f})"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
