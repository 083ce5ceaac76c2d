"""Which processes train a stage together: read from the variables that a job sets, handed to each rank.

A PyTorchJob sets PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR, PET_MASTER_PORT (and,
without the prefix, MASTER_ADDR, MASTER_PORT, RANK: the *node's* rank, and WORLD_SIZE); an Indexed Job sets
JOB_COMPLETION_INDEX. The launcher turns them into torch's own RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT of each process. No torch here: the launcher imports this.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelchain.errors import UsageError

TOKEN_VARIABLE = "MODELCHAIN_TOKEN"  # noqa: S105 - the whole token; launcher to the ranks of the first node
REPORT_VARIABLE = "MODELCHAIN_RANK_REPORT"  # file in which a rank says why it failed
SCRATCH_VARIABLE = "MODELCHAIN_SCRATCH"  # folder for temporary files; the launcher removes it
LAUNCHER_VARIABLE = "MODELCHAIN_LAUNCHER_PID"
TOKEN_FILE = "token"  # noqa: S105 - in the scratch folder: the attempt's token, once the ranks know it
DEVICE_VARIABLE = "MODELCHAIN_DEVICE"  # auto (default), cpu or cuda

DEFAULT_MASTER_PORT = 23456  # the one a PyTorchJob uses
MAX_PORT = 65535


@dataclass(frozen=True)
class JobEnvironment:
    """What a job tells one launcher: how many nodes, which one this is, where the first one listens."""

    nodes: int = 1
    node_rank: int = 0
    processes_per_node: int = 1
    master_address: str = "127.0.0.1"
    master_port: int = DEFAULT_MASTER_PORT

    @classmethod
    def read(cls, variables: Mapping[str, str], *, declared_processes: int = 1) -> JobEnvironment:
        """Read PET_*, MASTER_* and RANK; one process where nothing is said.

        `declared_processes` (of the stage's job) is taken where PET_NPROC_PER_NODE is `auto`, `gpu` or `cpu`:
        what these mean depends on the machine, and the global batch must not. Raises UsageError.
        """
        per_node_text = variables.get("PET_NPROC_PER_NODE", "").strip()
        if per_node_text in ("auto", "gpu", "cpu"):
            processes_per_node = declared_processes
        else:
            processes_per_node = _whole_number(variables, ("PET_NPROC_PER_NODE",), default=1, least=1)
        if variables.get("PET_NNODES", "").strip():
            nodes = _whole_number(variables, ("PET_NNODES",), default=1, least=1)
        else:
            world_size = _whole_number(variables, ("WORLD_SIZE",), default=processes_per_node, least=1)
            if world_size % processes_per_node:
                raise UsageError(
                    f"WORLD_SIZE={world_size} is no multiple of {processes_per_node} processes a node; "
                    "set PET_NNODES and PET_NPROC_PER_NODE"
                )
            nodes = world_size // processes_per_node
        node_rank = _whole_number(
            variables, ("PET_NODE_RANK", "RANK", "JOB_COMPLETION_INDEX"), default=0, least=0
        )
        if node_rank >= nodes:
            raise UsageError(f"the node's rank is {node_rank}, but there are {nodes} nodes; ranks begin at 0")
        address = _first(variables, ("PET_MASTER_ADDR", "MASTER_ADDR"))
        if nodes > 1 and address is None:
            raise UsageError(
                f"{nodes} nodes but no MASTER_ADDR: set it (or PET_MASTER_ADDR) to the first node's name"
            )
        port = _whole_number(variables, ("PET_MASTER_PORT", "MASTER_PORT"), default=0, least=0)
        if port > MAX_PORT:
            raise UsageError(f"MASTER_PORT={port} is no port; ports end at {MAX_PORT}")
        if port == 0:
            port = free_port() if nodes == 1 else DEFAULT_MASTER_PORT
        return cls(nodes, node_rank, processes_per_node, address or "127.0.0.1", port)

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.processes_per_node

    def rank_variables(self, local_rank: int) -> dict[str, str]:
        """What a rank of this node finds in its environment; `ProcessEnvironment.read` reads it."""
        return {
            "RANK": str(self.node_rank * self.processes_per_node + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.processes_per_node),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }


@dataclass(frozen=True)
class ProcessEnvironment:
    """One rank's place among the others, and what its launcher gave it."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_address: str
    master_port: int
    token: str | None  # of this attempt; None on other nodes than the first, which are told
    report: Path | None
    scratch: Path
    launcher_pid: int | None

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> ProcessEnvironment:
        """Read what `JobEnvironment.rank_variables` and the launcher have written. Raises UsageError."""
        report = variables.get(REPORT_VARIABLE)
        scratch = variables.get(SCRATCH_VARIABLE)
        if not scratch:
            raise UsageError(
                f"{SCRATCH_VARIABLE} is not set; start the trainer with `python -m modelchain_trainer`"
            )
        launcher = _whole_number(variables, (LAUNCHER_VARIABLE,), default=0, least=0)
        return cls(
            rank=_whole_number(variables, ("RANK",), default=0, least=0),
            local_rank=_whole_number(variables, ("LOCAL_RANK",), default=0, least=0),
            world_size=_whole_number(variables, ("WORLD_SIZE",), default=1, least=1),
            local_world_size=_whole_number(variables, ("LOCAL_WORLD_SIZE",), default=1, least=1),
            master_address=variables.get("MASTER_ADDR", "127.0.0.1"),
            master_port=_whole_number(variables, ("MASTER_PORT",), default=DEFAULT_MASTER_PORT, least=1),
            token=variables.get(TOKEN_VARIABLE) or None,
            report=Path(report) if report else None,
            scratch=Path(scratch),
            launcher_pid=launcher or None,
        )


def available_cores() -> int:
    """Cores this process may use: its affinity, and the limit of its control group (`limits.cpu`)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no control groups (v2), or not mounted here
    return max(1, cores)


def free_port() -> int:
    """A port nobody listens on now. Another process may take it before we do; the attempt is then retried."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first(variables: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    for name in names:
        if value := variables.get(name, "").strip():
            return value
    return None


def _whole_number(variables: Mapping[str, str], names: tuple[str, ...], *, default: int, least: int) -> int:
    for name in names:
        text = variables.get(name, "").strip()
        if not text:
            continue
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise UsageError(f"{name}={text!r} must be a whole number of at least {least}")
        return int(text)
    return default
