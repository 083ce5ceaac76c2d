"""The collectives of several ranks on the library that GPUs use, with the one rank that one GPU allows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from modelchain_trainer.distributed import collectives
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.environment import free_port
from tests.gpu.steps import batch, relative_error, stage, train_step

pytestmark = pytest.mark.gpu


class Connected(Group):
    """A group of one that sends all the same, to itself."""

    @property
    def alone(self) -> bool:
        return False


@pytest.fixture
def group(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    """As modelchain_trainer.distributed.ranks meets, on this machine."""
    monkeypatch.setattr(
        collectives, "BUCKET_BYTES", 1 << 16
    )  # many buckets, sent while the backward pass runs
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        init_method=f"tcp://127.0.0.1:{free_port()}",
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=60),
        device_id=device if on_gpu else None,
    )
    yield Connected(0, 1)
    dist.destroy_process_group()


def test_what_goes_through_the_group_comes_back(device: torch.device, group: Group) -> None:
    x = torch.randn(5, 3, device=device)
    assert torch.equal(group.gather(x), x)
    assert torch.equal(group.sum(x.clone()), x)
    assert torch.equal(group.broadcast(x.clone()), x)
    agreed = torch.tensor(3)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)  # ranks agree on the CPU, through gloo
    assert int(agreed) == 3


def test_gradients_summed_in_buckets_are_those_of_one_process(device: torch.device, group: Group) -> None:
    alone = train_step(device, stage())
    connected = train_step(device, stage(micro_batch_size=12), group=group)
    for step in range(2):  # the first lays the buckets out, the second sends them during the backward pass
        expected = alone.step.run(batch(step), step).read()
        found = connected.step.run(batch(step), step).read()
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        if step == 0:
            assert relative_error(connected.gradients(), alone.gradients()) < 1e-4
