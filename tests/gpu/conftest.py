"""Tests of what only a GPU shows: `pytest -m gpu tests/gpu`. They need no network, no cluster and no S3.

Where torch finds no CUDA device they are skipped; MODELCHAIN_TEST_DEVICE=cpu runs them on the CPU, to test the tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

DEVICE_VARIABLE = "MODELCHAIN_TEST_DEVICE"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of these tests those that compile come last, so that where time is short all else has been tested."""
    if all(item.path.is_relative_to(Path(__file__).parent) for item in items):
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The first GPU."""
    import torch

    wanted = os.environ.get(DEVICE_VARIABLE, "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"torch finds no CUDA device here; {DEVICE_VARIABLE}=cpu runs these tests on the CPU")
    return torch.device(wanted, 0) if wanted == "cuda" else torch.device(wanted)


@pytest.fixture(autouse=True)
def fp32_without_tf32(device: torch.device) -> Iterator[None]:
    """Matrix products of fp32 in fp32: TF32's 11 bits would hide errors."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
