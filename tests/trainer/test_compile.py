"""A compiled step: as many compilations as there are kinds of calls, however many lengths captions have.

The graphs are captured and differentiated as for a GPU, but run by torch's own kernels ("aot_eager"): no
compiler of C++ is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from tests.gpu.steps import CPU, batch, relative_error, stage, train_step

pytestmark = pytest.mark.slow

LENGTHS = (16, 21, 24, 30, 32, 40, 48, 56, 64, 77)  # more than torch compiles one function for (8)


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def test_a_compiled_step_is_the_same_step_and_is_compiled_once_for_all_lengths_of_captions() -> None:
    plain, compiled = train_step(CPU, stage()), train_step(CPU, stage(compile=True))
    for step, longest in enumerate(LENGTHS):
        rows = batch(step, longest=longest)
        expected, found = (each.step.run(rows, step).read() for each in (plain, compiled))
        assert found.loss == pytest.approx(expected.loss, rel=1e-5 if step == 0 else 1e-3)
        if step == 0:
            assert relative_error(compiled.gradients(), plain.gradients()) < 1e-5
    # Of student and teacher each: an image block, a text block, and the last one of each tower.
    assert counters["stats"]["unique_graphs"] == 8
