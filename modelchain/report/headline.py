"""What stands at the top of the page: the verdict and the headline figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelchain.report import units
from modelchain.report.accounting import Alone, Costs
from modelchain.report.beside import AloneRow, factor
from modelchain.report.data import ChainArtifacts
from modelchain.report.measures import Measure

COUNTED = "counted"
MEASURED = "measured"
PLANNED = "planned, not run"


@dataclass(frozen=True)
class Tile:
    """A headline figure; `source` says where it comes from."""

    title: str
    value: str
    detail: str
    source: str


def verdict(chain: ChainArtifacts, costs: Costs, alone: Sequence[AloneRow], measure: Measure | None) -> str:
    """The sentences below the title. `alone` is what `against_alone` says, here and below."""
    ratio, speedup, plan = costs.of_largest, costs.family_speedup, costs.plan
    done = sum(stage.complete for stage in chain.stages)
    if len(chain.stages) == 1:
        return "A chain of one model: there is nothing to compare its cost with."
    if ratio is None or speedup is None or plan is None:
        return f"{done} of {len(chain.stages)} models are trained."
    took = "took" if chain.complete else "will take"
    start = "" if chain.complete else f"{done} of {len(chain.stages)} models are trained. "
    times = f"{speedup:.2f} times less" if speedup >= 1 else f"{1 / speedup:.2f} times more"
    text = (
        f"{start}All {len(chain.stages)} models together {took} {units.percent(ratio)} of the compute of "
        f"training {plan.largest.model} alone, and {times} than training each of them alone."
    )
    row = next((row for row in alone if row.name == plan.largest.name), None)
    if row is not None and measure is not None:
        text += f" In the chain {row.model} reached {row.value}, alone {row.alone_value}."
    return text


def tiles(
    chain: ChainArtifacts, costs: Costs, alone: Sequence[AloneRow], measure: Measure | None
) -> list[Tile]:
    """The headline figures."""
    found = [_spent(chain, costs)]
    largest, family, plan = costs.largest_alone, costs.family_alone, costs.plan
    ratio, speedup = costs.of_largest, costs.family_speedup
    if largest and family and plan and ratio is not None and speedup is not None and len(chain.stages) > 1:
        one, all_of_them = plan.largest.model, f"{len(plan.stages)} models"
        found += [
            Tile(
                f"Chain against {one} alone",
                units.percent(ratio),
                f"of {units.macs(largest.macs)}, which {_alone(one, largest)}.",
                _source(chain, largest),
            ),
            Tile(
                "Chain against the family alone",
                factor(speedup),
                f"than {units.macs(family.macs)}, which {_alone(all_of_them, family)}.",
                _source(chain, family),
            ),
        ]
    return found + _as_good(alone, measure)


def _alone(what: str, alone: Alone) -> str:
    epochs = "" if alone.epochs is None else f" for {alone.epochs:,} epochs"
    return f"training {what} alone{epochs} {'took' if alone.run else 'would take'}"


def _source(chain: ChainArtifacts, alone: Alone) -> str:
    if chain.complete and alone.run:
        return "both counted"
    return f"chain {COUNTED if chain.complete else 'planned'}; alone {COUNTED if alone.run else PLANNED}"


def _spent(chain: ChainArtifacts, costs: Costs) -> Tile:
    detail = f"in {units.duration(costs.spent_seconds)} of training"
    if not chain.complete and costs.plan is not None:
        detail += f", of {units.macs(costs.plan.chain_macs)} planned"
    detail += "."
    if costs.reused:
        detail += (
            f" Of this, {units.macs(costs.reused_macs)} ({', '.join(costs.reused)}) was not spent again: "
            "another chain had trained it."
        )
    title = "Cost of the chain" if chain.complete else "Cost of the chain so far"
    return Tile(title, units.macs(costs.spent_macs), detail, f"compute {COUNTED}, time {MEASURED}")


def _as_good(rows: Sequence[AloneRow], measure: Measure | None) -> list[Tile]:
    """Against the largest model that really was trained alone."""
    if not rows or measure is None:
        return []
    row = rows[-1]
    title = f"As good as {row.model} trained alone"
    detail = f"{row.alone_value} took {row.alone_macs} alone"
    if row.until:
        detail += f", and {row.until} of the chain from its first step on."
        return [Tile(title, row.ratio or "", detail, "both counted")]
    detail += f". The chain’s {row.model} ended at {row.value}, after {row.macs}"
    detail += f"; so far, the one alone had come to {row.alone_then}." if row.alone_then else "."
    return [Tile(title, "not reached", detail, "both counted")]
