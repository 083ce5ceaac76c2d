"""What a chain of two stages costs the API server from its creation to its end, and what the short cuts save of it.

Counted, not timed, so that any machine gives the same. docs/architecture.md has the figures.
"""

from __future__ import annotations

from collections import Counter

import pytest

from modelchain_operator import reconciler
from modelchain_operator.kubernetes.kinds import CHAIN
from tests.operator.test_worlds import STAYS, World, chain

ROUNDS = 40


def requests_until_complete() -> Counter[str]:
    """One operator, whose watches show everything at once."""
    world = World()
    world.operators = world.operators[:1]
    world.api.put(CHAIN, chain(STAYS, ["tiny", "small"]))
    for _ in range(ROUNDS):
        world.watch(len(world.api.changes))
        world.the_store_is_read(0)
        world.passes(STAYS, 0)
        world.kubelet(0)
        world.now += 10
    world.loop.close()
    status = world.api.objects[CHAIN, STAYS.namespace, STAYS.name]["status"]
    assert status["phase"] == "Complete"
    return world.api.asked


READS = ("get", "list")


def test_short_cuts_save_four_of_five_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests_until_complete()
    monkeypatch.setattr(reconciler, "may_act_on_cache", lambda *_: False)
    without = requests_until_complete()
    assert [sum(counts[verb] for verb in READS) for counts in (asked, without)] == [3, 15]
    assert [counts["create"] for counts in (asked, without)] == [2, 2]
    assert [counts["update"] for counts in (asked, without)] == [5, 5]
