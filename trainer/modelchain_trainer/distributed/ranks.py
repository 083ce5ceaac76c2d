"""The processes that train a stage together: how they find each other, agree, and wait for one another.

Tensors go through torch.distributed's default process group (collectives.Group): gloo for those on the CPU,
NCCL for those on GPUs. Words, and waiting for what rank 0 alone does, go through the TCPStore behind it:
waiting there can last as long as it has to, and a signal ends it, which is true of no collective.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from modelchain.errors import ModelChainError
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.environment import ProcessEnvironment

logger = logging.getLogger(__name__)

MEETING_SECONDS = 900.0  # until the other ranks are there: their pods may still be pulling the image
COLLECTIVE_SECONDS = 600.0  # until a rank that does not answer counts as lost
POLL_SECONDS = 0.05

_SIGNS_OF_A_LOST_PEER = ("gloo", "Connection closed by peer", "Connection reset", "Broken pipe")


class LostPeerError(ModelChainError):
    """Another rank does not answer. Its own message says why; this one is tried again."""


class Ranks:
    """This process among the others. With one process nothing is opened and nobody is waited for."""

    def __init__(self, environment: ProcessEnvironment, device: torch.device) -> None:
        """Meet the others. Raises LostPeerError if they do not come."""
        self.rank = environment.rank
        self.world_size = environment.world_size
        self.first_of_node = environment.local_rank == 0
        self._address = f"{environment.master_address}:{environment.master_port}"
        self._words: Store | None = None
        self._shared: Counter[str] = Counter()  # how often each name was shared
        if self.world_size > 1:
            self._words = self._meet(environment, device)
        self.group = Group.current()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes to the store."""
        return self.rank == 0

    def share(self, name: str, make: Callable[[], str]) -> str:
        """What rank 0 makes, on every rank, however long it takes. All ranks share the same names in the same order."""
        if self._words is None:
            return make()
        self._shared[name] += 1
        name = f"{name} {self._shared[name]}"  # an old value is none that was just made
        if self.first:
            value = make()
            self._words.set(name, value)
            return value
        while not self._words.check([name]):
            time.sleep(POLL_SECONDS)
        return self._words.get(name).decode()

    def agree(self, value: int) -> int:
        """The largest value that any rank gave."""
        if self._words is None:
            return value
        agreed = torch.tensor(value)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return int(agreed)

    def wait_for_all(self, name: str) -> None:
        """Until every rank has come here, however long that takes. Each name is used once."""
        if self._words is None:
            return
        self._words.add(name, 1)
        while self._words.add(name, 0) < self.world_size:
            time.sleep(POLL_SECONDS)

    def leave(self) -> None:
        """Say good-bye: after a barrier, so that nobody finds the store gone that rank 0 hosts."""
        if self._words is None:
            return
        with contextlib.suppress(RuntimeError):
            dist.barrier()
            dist.destroy_process_group()

    def _meet(self, environment: ProcessEnvironment, device: torch.device) -> Store:
        if environment.master_address in ("127.0.0.1", "localhost", "::1") and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's name need not resolve
        if self.rank > 0:
            self._wait_for_first(environment)
        try:
            words = TCPStore(
                environment.master_address,
                environment.master_port,
                self.world_size,
                is_master=self.rank == 0,
                timeout=timedelta(seconds=MEETING_SECONDS),
                wait_for_workers=False,
            )
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore("group", words),
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=COLLECTIVE_SECONDS),
                device_id=device if device.type == "cuda" else None,
            )
        except (RuntimeError, ValueError) as error:
            raise LostPeerError(
                f"rank {self.rank} could not meet the other {self.world_size - 1} at {self._address}: {error}"
            ) from None
        return PrefixStore("words", words)

    def _wait_for_first(self, environment: ProcessEnvironment) -> None:
        """Until rank 0 listens. torch would wait, too, but deaf to signals."""
        end = time.monotonic() + MEETING_SECONDS
        while True:
            try:
                socket.create_connection(
                    (environment.master_address, environment.master_port), timeout=5
                ).close()
            except OSError as error:
                if time.monotonic() > end:
                    waited = f"rank {self.rank} waited {MEETING_SECONDS:.0f} s for rank 0"
                    raise LostPeerError(f"{waited} at {self._address}: {error}") from None
                time.sleep(0.2)
            else:
                return


def lost_peer(error: RuntimeError, environment: ProcessEnvironment) -> LostPeerError | None:
    """`error` of one of several ranks as a LostPeerError, if that is what it says. gloo raises bare
    RuntimeErrors.
    """
    text = " ".join(str(error).split())
    if not isinstance(error, dist.DistError) and not any(sign in text for sign in _SIGNS_OF_A_LOST_PEER):
        return None
    text = re.sub(r"\[/\S+\] ", "", text).partition(" This is typically caused")[
        0
    ]  # gloo's own advice, to its authors
    first = f"{environment.master_address}:{environment.master_port}"
    return LostPeerError(f"rank {environment.rank} lost another rank (rank 0 is at {first}): {text[:300]}")
