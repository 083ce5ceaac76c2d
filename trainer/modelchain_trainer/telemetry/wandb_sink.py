"""Metrics as a run of Weights & Biases: one for each stage, which its attempts share.

Its own variables say where to (WANDB_API_KEY, WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL) and how (WANDB_MODE=offline
keeps runs in WANDB_DIR, for `wandb sync`). Curves are over `step`, a figure like any other: W&B's own count of lines
would leave out steps that are trained again from a checkpoint.
https://docs.wandb.ai/ref/python/init
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from modelchain.artifacts import DIGEST_LENGTH, MetricsLine
from modelchain.cost import parameters
from modelchain.errors import ConfigurationError
from modelchain.resolved import ResolvedStage
from modelchain_trainer.telemetry.metrics_log import scalars_of

PROJECT = "modelchain"  # unless WANDB_PROJECT names another


class WandbSink:
    """A run, with the stage's name and digest."""

    def __init__(self, stage: ResolvedStage, scratch: Path, environment: Mapping[str, str]) -> None:
        """Raises ConfigurationError where an offline run would be lost, and what `wandb.init` raises."""
        folder = environment.get("WANDB_DIR")
        if folder is None and environment.get("WANDB_MODE") == "offline":
            raise ConfigurationError(
                "WANDB_MODE=offline keeps runs in a folder; name one that stays with WANDB_DIR"
            )
        self._run = wandb.init(
            project=environment.get("WANDB_PROJECT", PROJECT),
            group=stage.chain.full_name,
            name=f"{stage.chain.name}/{stage.name}",
            id=stage.digest[:DIGEST_LENGTH],
            resume="allow",
            dir=folder or str(scratch),
            config={  # nothing of the store: its address is nobody's business there
                "digest": stage.digest,
                "task": stage.task,
                "model": stage.model,
                "parameters": parameters(stage.model_config_),
                "training": stage.training.model_dump(mode="json", by_alias=True, exclude_none=True),
            },
            settings=wandb.Settings(console="off", quiet=True, disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")

    def resume(self, history: Sequence[MetricsLine]) -> None:
        """They were sent by the attempts that measured them."""

    def write(self, line: MetricsLine) -> None:
        """A line's figures, at its step."""
        self._run.log({"step": line.step, **scalars_of(line).values})

    def close(self) -> None:
        """Waits until all is sent, or written where it is offline."""
        self._run.finish()
        wandb.teardown()  # its own process may still be writing
