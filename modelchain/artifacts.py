"""The artifact contract: what lies where in a store, and what each JSON file says.

stages/<model>-<digest, shortened>/
    manifest.json       the commit; a stage is complete exactly when it verifies
    stage.json          what was asked, fully resolved
    lease.json          who trains this stage now
    data.json           its samples, and which shards it does without: written once, before it begins
    micro_batch.json    sizes of micro-batches that were found, where the chain leaves them open
    attempts/<token>/   one writer each
        progress.json   heartbeat
        checkpoints/<step>/   files, and checkpoint.json last; the one that the decay of a WarmupStableDecay
                              schedule begins with, the trunk, is kept and stands in the manifest
        open_clip_model.safetensors, open_clip_config.json (or what else the model's family publishes),
        predictions.json, metrics-<n>.jsonl, events.*, failure.json
chains/<namespace>/<chain>.json         the chain's status, for people and for the local runner
chains/<namespace>/<chain>.lease.json   who runs this chain now (local runner)
indexes/<hash of URIs, sizes and etags>.json    where samples lie in up to 32 shards
"""

from __future__ import annotations

import secrets
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from modelchain.block import Block
from modelchain.spec import Seconds, Sha256, Sharding
from modelchain.text import one_line
from modelchain.times import Rfc3339

DIGEST_LENGTH = 16  # hex digits of the digest in a folder's name; the manifest holds all 64

MANIFEST = "manifest.json"
STAGE = "stage.json"
LEASE = "lease.json"
DATA = "data.json"
MICRO_BATCH = "micro_batch.json"
PROGRESS = "progress.json"
FAILURE = "failure.json"
CHECKPOINT = "checkpoint.json"
WEIGHTS = "open_clip_model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
PREDICTIONS = "predictions.json"
CHECKPOINT_MODEL = "model.safetensors"
CHECKPOINT_OPTIMIZER = "optimizer.safetensors"
METRICS_FILES = "metrics-*.jsonl"  # each is named by `metrics_file`

FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
# What a store says may go into a status, where Kubernetes keeps integers of 64 bits.
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Macs = Annotated[float, Field(ge=0, le=1e36)]  # multiply-accumulates; sums and ratios of them are finite
ProcessExitCode = Annotated[int, Field(ge=0, le=255)]
Line = Annotated[str, Field(max_length=512), AfterValidator(one_line)]  # it stands in messages
AttemptToken = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]


class FileEntry(Block):
    path: str  # relative to the folder of the manifest
    bytes: Whole
    sha256: Sha256


class DataRecord(Block):
    """data.json: what a stage decided when it first looked at its shards. Every attempt sees the same samples."""

    version: int = 1
    left_out: tuple[str, ...]  # URIs of shards
    samples: Whole  # in the others
    layout: str = ""  # hash of which samples there are and where they lie; empty: not known
    versions: str = ""  # hash of the versions of all shards


class FoundMicroBatch(Block):
    """A size of micro-batches, and what it was found for."""

    processes: Whole
    device: str  # the GPU's name, or cpu
    sharding: Sharding
    gradient_checkpointing: bool
    size: Whole

    @property
    def circumstances(self) -> tuple[object, ...]:
        """All but the size."""
        return (self.processes, self.device, self.sharding, self.gradient_checkpointing)


class MicroBatchRecord(Block):
    """micro_batch.json: what attempts of a stage found, so that later ones take the same."""

    version: int = 1
    found: tuple[FoundMicroBatch, ...] = ()


class PassedOver(Block):
    """Data that a stage did without: a stretch of steps was not finite, and it was trained from before them on with the
    data behind them.
    """

    step: Whole  # steps finished in the checkpoint that it went back to; 0: to its beginning
    batches: Whole  # global batches that it would have seen from there on, and that nothing was learnt from


class Manifest(Block):
    """manifest.json: written once, with if_absent, by the attempt that finished first."""

    version: int = 1
    digest: Sha256
    stage: Line  # name of the stage in the chain that trained it
    model: Line
    chain: Line  # namespace/name of the chain that trained it
    attempt: AttemptToken  # the winning attempt's token: its files lie in attempts/<token>/
    predecessor: Sha256 | None = None
    teacher: Sha256 | None = None
    files: tuple[FileEntry, ...]  # paths relative to the stage's folder
    trunk: str | None = None  # folder of the checkpoint before the decay, relative to the stage's folder
    metrics: dict[str, FiniteNumber]  # final evaluation, e.g. {"digits/top1": 0.93}
    steps: Whole
    samples: Whole  # samples seen: steps * globalBatchSize
    macs: Macs  # spent on this stage (METHOD accounting)
    computed_macs: Macs | None = None  # of these computed: without padding, and what nothing reads
    started_at: Rfc3339  # first attempt
    completed_at: Rfc3339
    train_seconds: FiniteNumber  # time spent in training steps, over all attempts
    passed_over: tuple[
        PassedOver, ...
    ] = ()  # what the steps that were taken back cost is in none of the figures
    versions: dict[str, str]  # modelchain, torch, python ...

    @property
    def weights(self) -> str:
        """Path of the weights, relative to the stage's folder: the safetensors file that the attempt has published."""
        folder = f"attempts/{self.attempt}/"
        published = (
            f.path for f in self.files if f.path.startswith(folder) and f.path.endswith(".safetensors")
        )
        return next(published, folder + WEIGHTS)


class CheckpointManifest(Block):
    """checkpoints/<step>/checkpoint.json: written last; a checkpoint without it does not exist."""

    version: int = 1
    digest: Sha256
    step: Whole
    world_size: Whole
    files: tuple[FileEntry, ...]  # paths relative to the checkpoint's folder


class Progress(Block):
    """progress.json: the heartbeat of one attempt. Written only when there is progress: a change is a sign of life."""

    version: int = 1
    phase: str  # Starting, Indexing, Expanding, Training, Evaluating, Checkpointing, Uploading, Complete
    step: Whole
    steps: Whole
    sequence: (
        Whole  # grows with progress: a step, a phase, a shard indexed, a batch evaluated, a file uploaded
    )
    samples_per_second: FiniteNumber | None = None
    data_wait_fraction: FiniteNumber | None = None
    loss: dict[str, FiniteNumber] = {}  # total, task, distillation
    metrics: dict[str, FiniteNumber] = {}  # latest evaluation
    eta_seconds: FiniteNumber | None = None
    corrupt_samples: dict[str, Whole] = {}  # by cause
    passed_over: tuple[PassedOver, ...] | None = None  # where steps that were not finite were taken back
    checkpoint_step: Whole | None = None
    updated_at: Rfc3339


class Failure(Block):
    """failure.json, and in short the termination message of the pod: why an attempt ended."""

    version: int = 1
    exit_code: ProcessExitCode
    reason: str  # CamelCase, e.g. DataError
    message: str  # one line
    rank: Whole | None = None
    step: Whole | None = None


class Lease(Block):
    """lease.json: who holds something now. Renewed by conditional writes; judged by the observer's own clock."""

    version: int = 1
    holder: Line  # attempt token, or the runner's nonce
    chain: Line  # namespace/name
    sequence: Whole  # grows with each renewal
    duration_seconds: Seconds
    host: str
    process: str  # "<boot id>/<pid>/<start time>": lets the same machine see at once that the holder is dead
    renewed_at: str  # for people; never compared between machines
    released: bool = False  # the holder let go of it


class TrainLine(Block):
    """A line of metrics-<n>.jsonl: the state after `step` steps. Counts and times begin with the stage."""

    model_config = ConfigDict(extra="ignore")  # a newer trainer may write more

    kind: Literal["train"] = "train"
    step: Whole  # finished ones
    epoch: FiniteNumber
    samples: Whole  # seen
    macs: Macs  # spent, teacher included, as the plan counts them
    computed_macs: Macs | None = None  # of these computed; None: a checkpoint did not say
    time: FiniteNumber  # seconds of training, without interruptions
    wall_time: FiniteNumber  # seconds since 1970
    learning_rate: FiniteNumber
    loss: dict[str, FiniteNumber]  # total, task, distillation
    distillation_weight: FiniteNumber
    logit_scale: FiniteNumber | None = None  # of tasks that learn one
    gradient_norm: FiniteNumber
    samples_per_second: FiniteNumber
    data_wait_fraction: FiniteNumber
    passed_over_batches: Whole | None = None  # so far (see `PassedOver`), where there are any


class EvaluationLine(Block):
    """A line of metrics-<n>.jsonl: an evaluation after `step` steps; at step 0, of the model as it begins."""

    model_config = ConfigDict(extra="ignore")

    kind: Literal["evaluation"] = "evaluation"
    step: Whole
    samples: Whole
    macs: Macs
    time: FiniteNumber
    wall_time: FiniteNumber
    metrics: dict[str, FiniteNumber]  # e.g. {"digits/top1": 0.93}


MetricsLine: TypeAlias = TrainLine | EvaluationLine
METRICS_LINE: TypeAdapter[MetricsLine] = TypeAdapter(Annotated[MetricsLine, Field(discriminator="kind")])


class PredictedSample(Block):
    """A sample of an evaluation set with the classes that a model finds likeliest."""

    model_config = ConfigDict(extra="ignore")

    png: str  # the picture, base64
    label: Whole  # index of its class
    top: Annotated[
        tuple[tuple[str, FiniteNumber], ...], Field(min_length=1)
    ]  # class, probability; likeliest first


class Predictions(Block):
    """predictions.json, beside the weights: samples spread evenly over the first evaluation set with classes."""

    model_config = ConfigDict(extra="ignore")

    set: str
    classes: tuple[str, ...]
    samples: tuple[PredictedSample, ...]


def attempt_prefix(chain_uid: str, attempt: int) -> str:
    """What the tokens of all launches of one attempt begin with; travels to the trainer as MODELCHAIN_ATTEMPT."""
    short = "".join(c for c in chain_uid.lower() if c.isalnum())[:12] or "local"
    return f"{short}-{attempt}"


def new_attempt_token(chain_uid: str, attempt: int) -> str:
    """A name for one launch of one attempt; the nonce tells apart launches that share the first two."""
    return f"{attempt_prefix(chain_uid, attempt)}-{secrets.token_hex(4)}"


def stage_folder(model: str, digest: str) -> str:
    """Folder of a stage, relative to the store."""
    safe = "".join(c if c.isalnum() or c in "-." else "-" for c in model)[:64]
    return f"stages/{safe}-{digest[:DIGEST_LENGTH]}"


def attempt_folder(folder: str, token: str) -> str:
    """Folder of one attempt of the stage in `folder`."""
    return f"{folder}/attempts/{token}"


def checkpoint_folder(folder: str, token: str, step: int) -> str:
    """Folder of a checkpoint; steps sort as text."""
    return f"{attempt_folder(folder, token)}/checkpoints/{step:010d}"


def metrics_file(first_step: int) -> str:
    """Name of the segment of metrics that begins at a step; steps sort as text."""
    return f"metrics-{first_step:010d}.jsonl"


def chain_key(namespace: str, name: str) -> str:
    """Where a chain's status is kept."""
    return f"chains/{namespace}/{name}.json"


def chain_lease_key(namespace: str, name: str) -> str:
    """Where the lease of a chain's runner is kept."""
    return f"chains/{namespace}/{name}.lease.json"
