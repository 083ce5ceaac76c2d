"""What the store said before the end of a job decides nothing after it."""

from __future__ import annotations

from modelchain.status import StagePhase, StageStatus
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.kinds import CHAIN, POD
from modelchain_operator.observe import status_of
from tests.modelchain.reconcile.chains import manifest
from tests.operator.test_worlds import STAYS, World, chain


def test_an_attempt_that_fails_after_its_manifest_was_written_has_not_failed() -> None:
    """The store was last read while it trained."""
    world = World()
    world.operators = world.operators[:1]
    world.api.put(CHAIN, chain(STAYS, ["tiny", "small"]))

    def tiny_after_a_pass() -> StageStatus | None:
        world.watch(len(world.api.changes))
        world.passes(STAYS, 0)
        status = status_of(world.api.objects[CHAIN, STAYS.namespace, STAYS.name])
        return status.find_stage("tiny") if status is not None else None

    while (tiny := tiny_after_a_pass()) is None or tiny.phase is not StagePhase.RUNNING:
        world.kubelet(2)
    world.the_store_is_read(0)
    (job,) = world.own_jobs()
    stage = world.stage_of(job["metadata"]["annotations"][labels.DIGEST_ANNOTATION])
    assert stage is not None
    world.manifests[stage.digest] = manifest(stage)
    world.end(world.api.all(POD)[0], code=1)
    for _ in range(3):
        tiny = tiny_after_a_pass()
    world.loop.close()
    assert tiny is not None
    assert (tiny.phase, tiny.failures) == (StagePhase.COMPLETE, 0)
