"""One attempt at a stage: its place among the ranks, its store, its lease, its telemetry."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from modelchain.artifacts import LEASE, STAGE, attempt_folder
from modelchain.commit import require_conditional_writes, verify_stage
from modelchain.errors import ConfigurationError, HeldError
from modelchain.lease import LeaseKeeper
from modelchain.resolved import ResolvedStage
from modelchain.spec import Precision
from modelchain.store import ConflictError, Store, open_store
from modelchain_trainer.distributed.ranks import Ranks
from modelchain_trainer.environment import (
    DEVICE_VARIABLE,
    TOKEN_FILE,
    ProcessEnvironment,
    available_cores,
)
from modelchain_trainer.position import Position
from modelchain_trainer.retry_policy import RetryPolicy
from modelchain_trainer.stopping import StopRequest
from modelchain_trainer.telemetry.recorder import Telemetry
from modelchain_trainer.telemetry.sinks import find_sinks
from modelchain_trainer.telemetry.trainjob_status import StatusReporter, find_server

logger = logging.getLogger(__name__)

IN_A_POD = "KUBERNETES_SERVICE_HOST"  # the kubelet sets it in every container


@dataclass(frozen=True)
class Attempt:
    """What every part of the training needs to know of the attempt it belongs to."""

    stage: ResolvedStage
    token: str
    store: Store
    scratch: Path  # this rank's own
    device: torch.device
    ranks: Ranks
    stop: StopRequest
    position: Position
    telemetry: Telemetry  # silent on other ranks than the first
    lease: LeaseKeeper | None  # held by the first rank
    retry_policy: RetryPolicy

    @property
    def folder(self) -> str:
        """The attempt's folder, relative to the store."""
        return attempt_folder(self.stage.folder, self.token)

    def check_lease(self) -> None:
        """Raises HeldError if another process has taken the stage over, as far as this rank knows."""
        if self.lease is not None and self.lease.lost:
            raise HeldError(
                f"stage {self.stage.name}: another process has taken over the lease of {self.stage.folder}; "
                "this one stops and commits nothing"
            )


@contextlib.contextmanager
def begin(
    stage: ResolvedStage, environment: ProcessEnvironment, stop: StopRequest, position: Position
) -> Iterator[Attempt | None]:
    """Meet the other ranks and take the stage's lease; None if the stage is complete already.

    Raises LostPeerError if ranks are missing, and HeldError while somebody else trains the stage.
    """
    device = _choose_device(stage, environment)
    if device.type == "cuda":
        check_precision(
            stage.training.precision,
            torch.cuda.is_bf16_supported(including_emulation=False),
            torch.cuda.get_device_name(device),
        )
    _configure_torch(environment, device)
    ranks = Ranks(environment, device)
    store = open_store(stage.store)
    retry_policy = RetryPolicy()
    manifest = ranks.share("winner", lambda: retry_policy.call(lambda: _winner(store, stage)))
    if manifest:
        logger.info("stage %s is complete already, by attempt %s", stage.name, manifest)
        yield None
        ranks.leave()
        return
    token = ranks.share("token", lambda: environment.token or "")
    (environment.scratch / TOKEN_FILE).write_text(token)  # for the launchers of other nodes than the first
    scratch = environment.scratch / f"rank-{environment.local_rank}"
    scratch.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        lease = None
        telemetry = Telemetry(None, "", steps=stage.training.steps)
        if ranks.first:
            accept_risk = stage.store.allow_unconditional_writes
            retry_policy.call(lambda: require_conditional_writes(store, accept_risk=accept_risk))
            lease = _take_lease(store, stage, token)
            stack.callback(lease.release)
            telemetry = Telemetry(
                store,
                attempt_folder(stage.folder, token),
                steps=stage.training.steps,
                sinks=find_sinks(stage, scratch, os.environ),
            )
            stack.callback(telemetry.close)
            if (server := find_server(os.environ)) is not None:
                reporter = StatusReporter(server, telemetry.progress)
                stack.callback(reporter.close)
                reporter.start()
            retry_policy.call(lambda: _write_stage(store, stage))
        telemetry.start()
        ranks.share("lease", lambda: token)  # nobody goes on before it is held
        yield Attempt(
            stage, token, store, scratch, device, ranks, stop, position, telemetry, lease, retry_policy
        )
    ranks.leave()


def _choose_device(stage: ResolvedStage, environment: ProcessEnvironment) -> torch.device:
    wanted = os.environ.get(DEVICE_VARIABLE, "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(f"{DEVICE_VARIABLE}={wanted!r}: use auto, cpu or cuda")
    if wanted == "cpu" or (wanted == "auto" and stage.job.gpus_per_node == 0):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda},"
        none = f"{built} finds no GPU here ({_why_no_gpu()})"
        if wanted == "cuda":
            raise ConfigurationError(
                f"{DEVICE_VARIABLE}=cuda, but {none}; check the node's driver and the pod's resources"
            )
        gpus = f"job.gpusPerNode is {stage.job.gpus_per_node}, but {none}"
        if IN_A_POD in os.environ:
            raise ConfigurationError(
                f"{gpus}; check the node's driver and what the pod was given, or write gpusPerNode: 0 to train on the "
                "CPU"
            )
        logger.warning("%s; training on the CPU", gpus)
        return torch.device("cpu")
    if environment.local_world_size > torch.cuda.device_count():
        raise ConfigurationError(
            f"{environment.local_world_size} processes on this node, but {torch.cuda.device_count()} GPUs; "
            "set job.processesPerNode to at most that"
        )
    return torch.device("cuda", environment.local_rank)


def _why_no_gpu() -> str:
    """In torch's own words: a driver that is too old, none at all, no GPU, a build without CUDA."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split()).partition(". ")[0]
    return "it does not say why"


def check_precision(precision: Precision, has_bf16: bool, gpu: str) -> None:
    """Raises ConfigurationError where the stage's precision is one that this kind of GPU lacks."""
    if precision is Precision.BF16 and not has_bf16:
        raise ConfigurationError(
            f"training.precision is Bf16, which {gpu} does not compute; write Fp32, or train on GPUs that do (Ampere "
            "or newer)"
        )


def _configure_torch(environment: ProcessEnvironment, device: torch.device) -> None:
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, available_cores() // environment.local_world_size))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32: fp32 where it matters is asked for there
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def _winner(store: Store, stage: ResolvedStage) -> str:
    manifest = verify_stage(store, stage.folder, stage.digest)
    return manifest.attempt if manifest is not None else ""


def _take_lease(store: Store, stage: ResolvedStage, token: str) -> LeaseKeeper:
    keeper = LeaseKeeper(
        store,
        f"{stage.folder}/{LEASE}",
        holder=token,
        chain=stage.chain.full_name,
        duration_seconds=stage.retry.lease_seconds,
    )
    RetryPolicy().call(keeper.acquire)
    return keeper


def _write_stage(store: Store, stage: ResolvedStage) -> None:
    """Leave stage.json, unless an earlier attempt did."""
    data = stage.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode()
    with contextlib.suppress(ConflictError):
        store.put(f"{stage.folder}/{STAGE}", data, if_absent=True)
