"""However much there is to say of a chain, its status fits into what the API server stores."""

from __future__ import annotations

from modelchain.spec import MAX_BASELINES, MAX_STAGES
from modelchain.status import (
    MAX_CONDITION_MESSAGE,
    MAX_MESSAGE,
    MAX_METRIC_NAME,
    MAX_METRICS,
    ChainStatus,
    Condition,
    ConditionType,
    EndedAttempt,
    Measurement,
    ModelMeasured,
    StagePhase,
    StageStatus,
)

ETCD_BYTES = 1.5 * 2**20  # of a request, by default: https://etcd.io/docs/v3.5/dev-guide/limit/
TIME = "2026-11-24T02:00:00.000000+00:00"


def stage(name: str) -> StageStatus:
    """As large as a stage's status may be."""
    numbers = {f"{i:0{MAX_METRIC_NAME}}": -1.2345678901234567e-300 for i in range(MAX_METRICS)}
    ended = EndedAttempt(attempt=10**6, reason="R" * 64, message="m" * MAX_MESSAGE, counted=True, time=TIME)
    return StageStatus(
        name=f"{name:x<30}",
        phase=StagePhase.SUSPENDED,
        reason="R" * 64,
        message="m" * MAX_MESSAGE,
        digest="a" * 64,
        job="j" * 256,
        last_ended=ended,
        loss=numbers,
        metrics=numbers,
        weights_uri="s" * 2048,
    )


def test_the_largest_status_with_its_baselines_fits() -> None:
    models = tuple(
        ModelMeasured(name=f"{i:030}", target=1 / 3, macs=1.2345678901234567e30, reached=False)
        for i in range(MAX_STAGES)
    )
    status = ChainStatus(
        stages=tuple(stage(f"s{i}") for i in range(MAX_STAGES)),
        baselines=tuple(stage(f"b{i}") for i in range(MAX_BASELINES)),
        measurement=Measurement(metric="m" * MAX_METRIC_NAME, chain_macs=1e30 / 3, models=models),
        conditions=tuple(
            Condition(
                type=kind,
                status="False",
                reason="R" * 64,
                message="m" * MAX_CONDITION_MESSAGE,
                last_transition_time=TIME,
            )
            for kind in ConditionType
        ),
    )
    assert len(status.model_dump_json(by_alias=True).encode()) < ETCD_BYTES - 128 * 2**10, (
        "the spec needs room too"
    )
