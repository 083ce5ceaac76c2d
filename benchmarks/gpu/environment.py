"""Part `environment`: the card, the machine, the software, and what the card can do at most."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.cuda import nccl

from benchmarks.gpu import ceilings
from benchmarks.gpu.record import Record, part_arguments

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "pillow",
    "open_clip_torch",
    "timm",
    "webdataset",
    "pydantic",
)
SMI_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "power.limit",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "pcie.link.gen.current",
    "pcie.link.width.current",
)


def main() -> None:
    options = part_arguments(__doc__)
    device = torch.device(options.device)
    record = Record(options.record, options.seconds)
    record.attempt("machine", machine)
    record.attempt("versions", versions)
    if device.type == "cuda":
        record.attempt("gpu", gpu)
        record.attempt("nvidiaSmi", nvidia_smi)
    record.attempt("matmulFlops", lambda: ceilings.matmul_flops(device))
    record.attempt("copyBytesPerSecond", lambda: ceilings.copy_bytes_per_second(device))
    if device.type == "cuda":
        record.attempt("uploadBytesPerSecond", lambda: ceilings.upload_bytes_per_second(device))


def machine() -> dict[str, object]:
    """Cores, memory, and the shared memory that open_clip's loader needs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0  # noqa: S108, PTH112
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memoryBytes": memory,
        "sharedMemoryBytes": shared,
        "loadAverage": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Of what takes part."""
    found: dict[str, str | None] = {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def gpu() -> dict[str, object]:
    """What torch says of the card."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memoryBytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "count": torch.cuda.device_count(),
        "nccl": ".".join(map(str, nccl.version())),
    }


def nvidia_smi() -> dict[str, str]:
    """What the driver says of it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "--id=0"]
    line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    return dict(zip(SMI_FIELDS, (field.strip() for field in line.split(",")), strict=False))


if __name__ == "__main__":
    main()
