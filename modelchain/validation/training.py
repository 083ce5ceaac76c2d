"""Rules of numbers that must fit each other: samples, batches, processes, steps.

On stages with defaults filled in.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelchain.block import Block
from modelchain.families import AnyConfig, family_of
from modelchain.resolve import largest_divisor, merged, models_of, resolve_job, samples_of
from modelchain.resolved import DEFAULT_BATCH, ResolvedJob, ResolvedTraining, decay_steps
from modelchain.spec import (
    DataSpec,
    LearningRateSchedule,
    ModelChain,
    Sharding,
    StageSpec,
    TaskName,
    TrainingSpec,
)
from modelchain.tasks import task_of
from modelchain.validation.problem import Finding, quoted
from modelchain.yaml_reader import FieldPath


def check_training(chain: ModelChain) -> Iterator[Finding]:
    """What is wrong with the numbers of each stage; once for what the chain says for all."""
    yield from _check_missing(chain)
    said: set[FieldPath] = set()  # a number that the chain gives for all is said to be wrong once
    for index, stage in enumerate(chain.spec.stages):
        for finding in _Numbers(chain, index, stage).check():
            if finding.path not in said:
                said.add(finding.path)
                yield finding


def _check_missing(chain: ModelChain) -> Iterator[Finding]:
    size = task_of(chain.spec.task or TaskName.CLIP).size_field
    needed = (
        ("data", "shards", "list the tars to train on: shards: ['s3://bucket/{0000..0127}.tar']"),
        ("data", size, f"write how many {size} all shards have together"),
        ("training", "epochs", "write how many times each sample is seen"),
    )
    spec = chain.spec
    for block, name, remedy in needed:
        if _says(getattr(spec, block), name):
            continue
        lacking = [index for index, stage in enumerate(spec.stages) if not _says(getattr(stage, block), name)]
        about = frozenset({block, name})
        if len(lacking) == len(spec.stages):
            yield Finding(("spec", block, name), "is missing", remedy, about)
            continue
        for index in lacking:
            where = f"{remedy}, here or in spec.{block}"
            yield Finding(("spec", "stages", index, block, name), "is missing", where, about)


def _says(block: Block | None, field: str) -> bool:
    """Whether a block gives a field, or sources, which have shards and samples of their own."""
    if isinstance(block, DataSpec) and block.sources is not None and field in ("shards", "samples"):
        return True
    return getattr(block, field, None) is not None


class _Numbers:
    """The numbers of one stage, and where each is written."""

    def __init__(self, chain: ModelChain, index: int, stage: StageSpec) -> None:
        spec = chain.spec
        self._chain = chain
        self._index = index
        self._stage = stage
        self._data: DataSpec = merged(spec.data, stage.data) or DataSpec()
        self._training: TrainingSpec = merged(spec.training, stage.training) or TrainingSpec()
        self._job: ResolvedJob = resolve_job(merged(spec.job, stage.job))
        self._batch = self._training.global_batch_size or DEFAULT_BATCH

    def check(self) -> Iterator[Finding]:
        yield from self._check_world()
        yield from self._check_rates()
        yield from self._check_sharding()
        yield from self._check_sources()
        yield from self._check_family()
        samples = samples_of(self._chain, self._stage)
        by_tokens = task_of(self._chain.spec.task or TaskName.CLIP).size_field != "samples"
        if samples is None or (by_tokens and self._data.sources is not None):
            return  # documents have no sources, which is said there
        if samples < self._batch:
            yield self._too_few(samples)
        elif self._training.epochs is not None:
            yield from self._check_warmup(self._training.epochs * (samples // self._batch))

    def _too_few(self, samples: int) -> Finding:
        """Less data than a batch; of documents perhaps less than a sample."""
        task = task_of(self._chain.spec.task or TaskName.CLIP)
        size, unit = task.size_field, task.unit
        have = f"{samples} {unit}"
        remedy = f"write training.globalBatchSize: {samples} or less, or add {size}"
        if size != "samples":
            have = f"{getattr(self._data, size)} {size} are {have}, which"
        if samples == 0:
            remedy = f"add {size}" + (f", or make {unit} shorter" if size != "samples" else "")
        message = f"{have} do not fill one batch of {self._batch}"
        if self._data.sources is not None:
            size = "sources"
        return self._finding("data", size, message, remedy, "globalBatchSize")

    def _check_sources(self) -> Iterator[Finding]:
        data = self._data
        if data.sources is None:
            return
        beside = [name for name in ("shards", "samples") if getattr(data, name) is not None]
        if beside:
            message = f"{' and '.join(beside)} given beside sources, which have their own"
            remedy = "remove them, or make them a source: {shards: [...], samples: ...}"
            both = (*beside, "sources")
            of_stage = [name for name in both if self._written("data", name)[1] == "stages"]
            if 0 < len(of_stage) < len(both):
                message += "; a stage has those of spec.data too"
                remedy = "give all stages sources, or all shards and samples, or leave both out of spec.data"
            yield self._finding("data", (of_stage or both)[0], message, remedy, *both)

    def _check_world(self) -> Iterator[Finding]:
        job, world = self._job, self._job.nodes * self._job.processes_per_node
        about = ("job", "nodes", "processesPerNode", "gpusPerNode", "globalBatchSize")
        if self._batch % world:
            message = (
                f"a batch of {self._batch} does not divide among {world} processes "
                f"({job.nodes} x {job.processes_per_node})"
            )
            near = max(1, round(self._batch / world)) * world
            yield self._finding(
                "training", "globalBatchSize", message, f"write a multiple of {world}, e.g. {near}", *about
            )
            return
        share, micro = self._batch // world, self._training.micro_batch_size
        if micro and share % micro:  # none: the whole share, or found by the trainer
            message = (
                f"micro-batches of {micro} do not divide the {share} samples of each of {world} processes"
            )
            remedy = f"write a divisor of {share}, e.g. {largest_divisor(share, micro)}"
            yield self._finding("training", "microBatchSize", message, remedy, *about)
            return
        for field, config in models_of(self._stage).items():
            if self._training.epochs != 0:
                yield from self._check_together(share, field, config, world)

    def _check_together(self, share: int, field: str, config: AnyConfig, world: int) -> Iterator[Finding]:
        """Samples that are normed together are on one process, and in one micro-batch."""
        together, other = config.rows_together, "a normBatchSize that"
        if field == "model":
            other = f"the model out under {family_of(config).field} with a normBatchSize that"
        normed = f"{quoted(self._stage.name)} norms {together} samples together (normBatchSize)"
        about = ("job", "nodes", "processesPerNode", "gpusPerNode", "normBatchSize", field)
        if share % together:
            message = f"{normed}, which do not divide the {share} of each of {world} processes"
            near = max(1, round(share / together)) * together * world
            remedy = f"write a multiple of {together * world}, e.g. {near}, or {other} divides {share}"
            yield self._finding("training", "globalBatchSize", message, remedy, *about)
        elif self._training.micro_batch_size and self._training.micro_batch_size % together:
            message = f"{normed}, which do not divide a micro-batch of {self._training.micro_batch_size}"
            remedy = f"write a multiple of {together}, or {other} divides it"
            yield self._finding("training", "microBatchSize", message, remedy, *about)

    def _check_sharding(self) -> Iterator[Finding]:
        if self._training.sharding is Sharding.FULL and self._training.locked_tower is not None:
            message = "weights that are gathered block by block (sharding: Full) are all trained, none locked"
            remedy = "remove it, or write sharding: Optimizer"
            yield self._finding("training", "lockedTower", message, remedy, "sharding")
        if self._training.sharding is Sharding.FULL and self._training.compile:
            message = "blocks that gather their weights (sharding: Full) are not compiled"
            yield self._finding(
                "training", "compile", message, "remove it, or write sharding: Optimizer", "sharding"
            )

    def _check_family(self) -> Iterator[Finding]:
        """What the family of the stage's model can't do."""
        training, name = self._training, quoted(self._stage.name)
        for field, config in models_of(self._stage).items():
            family = family_of(config)
            model = f"{name}, {self._stage.model if field == 'model' else f'a model under {field}'},"
            if training.sharding is Sharding.FULL and not family.in_parts:
                message = f"{model} can't lie in parts on the processes"
                remedy = "remove it, or write sharding: Optimizer in the stage's training"
                yield self._finding("training", "sharding", message, remedy, field)
            if training.epochs == 0:
                continue  # its weights are held: what is asked of training steps never comes to it
            if training.compile and not family.compiles:
                message = f"{model} is not compiled"
                remedy = "remove it, or write compile: false in the stage's training"
                yield self._finding("training", "compile", message, remedy, field)
            if training.gradient_checkpointing and not family.recomputes(config):
                message = f"{name} has BatchNorm, whose statistics a second forward pass would count twice"
                remedy = "remove it, or write gradientCheckpointing: false in the stage's training"
                yield self._finding("training", "gradientCheckpointing", message, remedy, field)

    def _check_rates(self) -> Iterator[Finding]:
        peak = self._training.learning_rate
        floor = self._training.minimum_learning_rate
        fields = ResolvedTraining.model_fields
        peak = fields["learning_rate"].default if peak is None else peak
        floor = fields["minimum_learning_rate"].default if floor is None else floor
        if floor > peak:
            name = "learningRate" if self._training.minimum_learning_rate is None else "minimumLearningRate"
            message = f"the learning rate would rise from {peak:g} to {floor:g} at the end"
            remedy = f"write a minimumLearningRate of at most {peak:g}"
            yield self._finding("training", name, message, remedy, "learningRate", "minimumLearningRate")

    def _check_warmup(self, steps: int) -> Iterator[Finding]:
        warmup = self._training.warmup_steps
        if not steps or warmup is None:
            return
        trunk = steps - decay_steps(self._training.schedule or LearningRateSchedule(), steps)
        if warmup >= (trunk or steps):
            before = " before its decay" if trunk else ""
            message = (
                f"a warm-up of {warmup} steps does not end within the {trunk or steps} of "
                f"{quoted(self._stage.name)}{before}"
            )
            remedy = "write fewer, or remove it for the default"
            yield self._finding(
                "training", "warmupSteps", message, remedy, "epochs", "samples", "globalBatchSize"
            )

    def _finding(self, block: str, name: str, message: str, remedy: str, *about: str) -> Finding:
        return Finding(self._written(block, name), message, remedy, frozenset({block, name, *about}))

    def _written(self, block: str, name: str) -> FieldPath:
        """Where the value of a field comes from: the stage, or the chain."""
        own = getattr(self._stage, block)
        written = own is not None and own.model_dump(by_alias=True).get(name) is not None
        return ("spec", "stages", self._index, block, name) if written else ("spec", block, name)
