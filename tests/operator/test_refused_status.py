"""A status that the API server finds wrong: the chain says so, and nothing is done that was not recorded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelchain.status import ChainPhase, ChainStatus, ConditionType, StageStatus
from modelchain_operator.informers.cache import Cache
from modelchain_operator.kubernetes.api import ApiError, Forbidden, Invalid, Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kubernetes.kinds import CHAIN
from modelchain_operator.observe import status_of
from modelchain_operator.status_writer import StatusWriter
from modelchain_operator.telemetry.metrics import Metrics
from tests.operator.memory_api import MemoryApi
from tests.processes import PATIENCE_SECONDS

KEY = Key("team", "family")


class Strict(MemoryApi):
    """Refuses integers of more than 64 bits, as the API server does."""

    def __init__(self, refusal: type[ApiError]) -> None:
        super().__init__()
        self.writes, self.refusal = 0, refusal
        self.told: list[str] = []

    async def write_status(self, chain: Object, status: Object) -> Object:
        self.writes += 1
        if (status.get("step") or 0) >= 2**63:
            raise self.refusal("status.step: Invalid value: 1e25", status=422, reason="Invalid")
        return await super().write_status(chain, status)

    async def create_event(self, event: Object) -> None:
        self.told.append(event["reason"])


@pytest.mark.parametrize("refusal", [Invalid, Forbidden])  # by the API server, by an admission webhook
def test_a_status_that_is_refused_is_told_and_keeps_what_was_recorded(refusal: type[ApiError]) -> None:
    asyncio.run(refused(refusal))


async def refused(refusal: type[ApiError]) -> None:
    api = Strict(refusal)
    before = ChainStatus(phase=ChainPhase.RUNNING, stages=(StageStatus(name="tiny", attempt=3),))
    metadata: dict[str, Any] = {"namespace": "team", "name": "family", "uid": "u", "generation": 7}
    status = before.model_dump(mode="json", by_alias=True, exclude_none=True)
    body = api.put(CHAIN, {"metadata": metadata, "spec": {}, "status": status})
    cache = Cache()
    cache.show_chain(body)
    writer = StatusWriter(api, cache, Metrics(), "operator")
    asked = before.model_copy(update={"step": 10**25})
    for _ in range(3):  # passes that fail
        cached = cache.chain(KEY)
        assert cached is not None
        body = cached.body()
        with pytest.raises(refusal):
            await writer.write(KEY, body, status_of(body), asked)
    told = status_of(api.objects[CHAIN, "team", "family"])
    assert told is not None
    assert (told.phase, told.last_attempts) == (ChainPhase.RUNNING, {"tiny": 3})
    assert told.observed_generation is None
    assert "refuses the status" in told.message
    await writer.close(PATIENCE_SECONDS)
    assert api.told == ["StatusRefused"]
    stalled = told.condition(ConditionType.STALLED)
    assert stalled is not None
    assert (stalled.status, stalled.reason) == ("True", "StatusRefused")
    assert api.writes == 4, "the same refusal is written once"
    await writer.write(KEY, api.objects[CHAIN, "team", "family"], told, before)
    assert status_of(api.objects[CHAIN, "team", "family"]) == before
