"""The top of the page: the verdict and the headline figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelchain.report import units
from modelchain.report.accounting import Alone, Costs
from modelchain.report.beside import AloneRow, factor
from modelchain.report.data import ChainArtifacts
from modelchain.report.measures import Measure
from modelchain.report.savings import Savings

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


def verdict(
    chain: ChainArtifacts,
    costs: Costs,
    alone: Sequence[AloneRow],
    measure: Measure | None,
    saved: Savings,
) -> str:
    """The sentences below the title. `alone`, here and below, is what `against_alone` returns."""
    ratio, speedup, plan = costs.of_largest, costs.family_speedup, costs.plan
    done = sum(stage.complete for stage in chain.stages)
    if len(chain.stages) == 1:
        return "A chain of one model: there is nothing to compare its cost with."
    if ratio is None or speedup is None or plan is None:
        return f"{done} of {len(chain.stages)} models are trained."
    start = "" if chain.complete else f"{done} of {len(chain.stages)} models are trained. "
    family = costs.family_alone
    ran = family is not None and family.run
    would, how = ("took", "") if ran else ("would take", ", as planned")
    text = f"{start}{_measured(saved)}"
    text += (
        f"Training each of the {len(chain.stages)} models alone{_for_epochs(family)} {would} {speedup:.2f} times the "
        f"compute of the chain{how}"
    )
    text += "." if saved.acceleration is not None else "; whether they would be as good was not measured."
    row = next((row for row in alone if row.name == plan.largest.name), None)
    if row is not None and measure is not None:
        text += f" In the chain {row.model} reached {row.value}, alone {row.alone_value}."
    return text


def _measured(saved: Savings) -> str:
    if saved.acceleration is None:
        return ""
    what = "the models" if saved.covers_all else ", ".join(row.model for row in saved.measured[:-1])
    least = "at least " if saved.acceleration.at_least else ""
    return (
        f"Measured: to become as good as in the chain by {saved.metric}, {what} alone took {least}"
        f"{saved.acceleration.factor:.2f} times its compute. "
    )


def _for_epochs(alone: Alone | None) -> str:
    if alone is None or alone.epochs is None:
        return ""
    return f" for {alone.epochs:,} epochs"


def tiles(
    chain: ChainArtifacts,
    costs: Costs,
    alone: Sequence[AloneRow],
    measure: Measure | None,
    saved: Savings,
) -> list[Tile]:
    """The headline figures."""
    found = [*_at_equal_quality(saved), _spent(chain, costs)]
    largest, family, plan = costs.largest_alone, costs.family_alone, costs.plan
    ratio, speedup = costs.of_largest, costs.family_speedup
    if largest and family and plan and ratio is not None and speedup is not None and len(chain.stages) > 1:
        one, all_of_them = plan.largest.model, f"{len(plan.stages)} models"
        found += [
            Tile(
                f"{_kind(largest)}: chain against {one} alone",
                units.percent(ratio),
                f"of {units.macs(largest.macs)}, which {_alone(one, largest)}.",
                _source(chain, largest),
            ),
            Tile(
                f"{_kind(family)}: chain against the family alone",
                factor(speedup),
                f"than {units.macs(family.macs)}, which {_alone(all_of_them, family)}.",
                _source(chain, family),
            ),
        ]
    return found + _as_good(alone, measure)


def _at_equal_quality(saved: Savings) -> list[Tile]:
    if saved.acceleration is None:
        return []
    *rows, total = saved.measured
    short = [row.model for row in rows if row.alone.startswith("≥")]
    detail = f"Alone, {total.alone} until as good by {saved.metric}; the chain took {total.chain}."
    if not saved.covers_all:
        detail += f" Of {', '.join(row.model for row in rows)} only."
    if short:
        detail += f" Alone, {', '.join(short)} did not get there: all that was spent is counted."
    return [Tile("Measured: at equal quality", total.factor, detail, "both counted")]


def _kind(alone: Alone) -> str:
    return "Counted" if alone.run else "Planned"


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
    """Against the largest model that was actually trained alone."""
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
