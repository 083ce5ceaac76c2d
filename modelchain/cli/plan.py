"""`modelchain plan`: what a chain costs, before anything is trained."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelchain.cli.options import add_cluster_options, names_a_chain

if TYPE_CHECKING:
    from modelchain.cost import Plan, StagePlan
    from modelchain.exactness import Change
    from modelchain.memory import StageMemory
    from modelchain.resolved import ResolvedChain
    from modelchain.spec import ModelChain

GIB = 2**30  # bytes
SUMMARY = "show what a chain trains and what it costs, against training them alone"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "plan",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}. MACs are multiply-accumulates: a step costs three forward "
        "passes, learning from a teacher one of the teacher's more.",
    )
    parser.add_argument(
        "chain", help="the chain's YAML file ('-' for standard input), or its name in the cluster"
    )
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="how to print the plan"
    )
    parser.add_argument(
        "--gpu-gib",
        type=_size,
        metavar="GIB",
        help="also show what each stage needs of GPUs with that much memory, e.g. 80",
    )
    add_cluster_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan of each chain of the file, or of the one in the cluster."""
    from modelchain.cost import plan
    from modelchain.resolve import resolve

    chains = [resolve(chain) for chain in _chains(arguments)]
    memories = [_memory(chain, arguments.gpu_gib) for chain in chains]
    if arguments.output == "json":
        documents = [
            as_json(plan(chain)) | ({"memory": [memory_as_json(one) for one in memory]} if memory else {})
            for chain, memory in zip(chains, memories, strict=True)
        ]
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    else:
        texts = [
            "\n".join((as_text(plan(chain)), *memory_as_text(memory, arguments.gpu_gib)))
            for chain, memory in zip(chains, memories, strict=True)
        ]
        print("\n\n".join(texts))
    return 0


def _size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GiB, such as 80")
    return size


def _memory(chain: ResolvedChain, gpu_gib: float | None) -> list[StageMemory]:
    from modelchain.memory import memory_of

    if gpu_gib is None:
        return []
    return [memory_of(stage, gpu_bytes=round(gpu_gib * GIB)) for stage in chain.stages]


def _chains(arguments: argparse.Namespace) -> list[ModelChain]:
    if names_a_chain(arguments.chain, arguments):
        from modelchain.cli.cluster import find_chain

        return [find_chain(arguments.chain, arguments).to_model_chain()]
    from modelchain.validation import load_chains

    return load_chains(arguments.chain)


def as_json(plan: Plan) -> dict[str, object]:
    """The plan for programs. MACs are whole numbers; ratios are what `as_text` prints, unrounded."""
    return {
        "namespace": plan.namespace,
        "name": plan.name,
        "baselineEpochs": plan.baseline_epochs,
        "stages": [
            {
                "name": stage.name,
                "model": stage.model,
                "predecessor": stage.predecessor,
                "teacher": stage.teacher,
                "digest": stage.digest,
                "folder": stage.folder,
                "parameters": stage.parameters,
                "macsPerSample": stage.macs_per_sample,
                "epochs": stage.epochs,
                "steps": stage.steps,
                "samples": stage.samples,
                "teacherSamples": stage.teacher_samples,
                "macs": stage.macs,
                "aloneMacs": stage.alone_macs,
                "growth": stage.growth and [_change_as_json(change) for change in stage.growth],
            }
            for stage in plan.stages
        ],
        "chain": {"macs": plan.chain_macs, "costRatioPlanned": plan.cost_ratio},
        "largest": {"name": plan.largest.name, "macs": plan.largest.alone_macs},
        "family": {"macs": plan.family_macs, "speedupPlanned": plan.speedup},
        "metric": plan.metric,
        "baselines": [
            {
                "name": run.name,
                "stage": run.stage,
                "epochs": run.epochs,
                "macs": run.macs,
                "budgetMacs": run.budget_macs,
                "inChain": run.own,
            }
            for run in plan.baselines
        ],
    }


def _change_as_json(change: Change) -> dict[str, object]:
    return {
        "dimension": change.dimension,
        "before": change.before,
        "after": change.after,
        "fidelity": change.fidelity,
        "reason": change.reason,
        "moves": change.moves and dict(zip(("least", "most"), change.moves, strict=True)),
    }


def memory_as_json(memory: StageMemory) -> dict[str, object]:
    """The GPU memory that a stage needs, for programs."""
    return {
        "stage": memory.name,
        "processes": memory.ranks,
        "sharding": memory.sharding,
        "keptBytes": memory.kept,
        "gatheredBytes": memory.gathered,
    }


def memory_as_text(memories: Sequence[StageMemory], gpu_gib: float) -> tuple[str, ...]:
    """The GPU memory that stages need, for people; nothing where that was not asked for."""
    from modelchain.cli.table import Column, render

    if not memories:
        return ()
    columns = (
        Column("STAGE"),
        Column("GPUS", right=True),
        Column("SHARDING"),
        Column("KEPT", right=True),
        Column("GATHERED", right=True),
    )
    rows = [
        (
            one.name,
            str(one.ranks),
            one.sharding,
            f"{one.kept / GIB:.1f} GiB",
            f"{one.gathered / GIB:.1f} GiB" if one.gathered else "-",
        )
        for one in memories
    ]
    title = f"Of each GPU of {gpu_gib:g} GiB, by calculation; activations come on top:"
    return ("", title, "", render(columns, rows))


def as_text(plan: Plan) -> str:
    """The plan for people."""
    from modelchain.cli.table import Column, count, render

    # Only where it says more than FROM.
    shows_teacher = any(stage.teacher != stage.predecessor for stage in plan.stages)
    columns = (
        Column("STAGE"),
        Column("MODEL"),
        Column("FROM"),
        *([Column("TEACHER")] if shows_teacher else []),
        Column("PARAMETERS", right=True),
        Column("MACS/SAMPLE", right=True),
        Column("EPOCHS", right=True),
        Column("SAMPLES", right=True),
        Column("MACS", right=True),
        Column("OF CHAIN", right=True),
        Column("ALONE", right=True),
        Column("DIGEST"),
    )

    def row(stage: StagePlan) -> tuple[str, ...]:
        return (
            stage.name,
            "(inline)" if stage.model == stage.name else stage.model,
            stage.predecessor or "-",
            *([stage.teacher or "-"] if shows_teacher else []),
            count(stage.parameters),
            count(stage.macs_per_sample),
            str(stage.epochs),
            count(stage.samples),
            count(stage.macs),
            f"{stage.macs / plan.chain_macs:.1%}",
            count(stage.alone_macs),
            stage.digest[:8],
        )

    largest = plan.largest
    epochs = f"{plan.baseline_epochs} epoch{'s' * (plan.baseline_epochs != 1)}"
    totals = (
        (f"the chain, all {len(plan.stages)} stages", count(plan.chain_macs), ""),
        (
            f"{largest.name} alone, {epochs}",
            count(largest.alone_macs),
            f"planned: the chain costs {100 * plan.cost_ratio:.1f} % of it",
        ),
        (
            f"the whole family alone, {epochs} each",
            count(plan.family_macs),
            f"planned: {plan.speedup:.2f}x the chain",
        ),
    )
    label = max(len(name) for name, _, _ in totals)
    number = max(len(macs) for _, macs, _ in totals)
    lines = (f"{name:<{label}}  {macs:>{number}} MACs  {ratio}".rstrip() for name, macs, ratio in totals)
    return "\n".join(
        (
            f"{plan.namespace}/{plan.name}, {plan.sample} a sample",
            "",
            render(columns, [row(stage) for stage in plan.stages]),
            "",
            *lines,
            *_growth(plan),
            *_baselines(plan),
        )
    )


def _growth(plan: Plan) -> tuple[str, ...]:
    """What grows at each stage, exact changes first; nothing where no stage has a predecessor or a teacher."""
    from modelchain.cli.table import Column, render

    rows = [row for stage in plan.stages for row in _growth_rows(stage)]
    if not rows:
        return ()
    columns = (Column("GROWTH"), Column("FUNCTION"), Column("OF"))
    return ("", render(columns, rows))


def _growth_rows(stage: StagePlan) -> list[tuple[str, str, str]]:
    from modelchain.exactness import Fidelity

    if stage.growth is None:
        return [(stage.name, "new", f"all weights; taught by {stage.teacher}")] if stage.teacher else []
    rows = [
        (change.fidelity.value, f"{change.sizes}: {change.reason}{_moves(change)}")
        for change in stage.growth
        if change.fidelity is not Fidelity.EXACT
    ]
    exact = ", ".join(change.sizes for change in stage.growth if change.fidelity is Fidelity.EXACT)
    if exact or not rows:
        rows.insert(0, ("exact", exact or "a copy, nothing grows"))
    return [(stage.name if place == 0 else "", *row) for place, row in enumerate(rows)]


def _moves(change: Change) -> str:
    """How near what is not exact was where it was measured."""
    return f"; moved embeddings by up to {100 * change.moves[1]:.2g} % where measured" if change.moves else ""


def _baselines(plan: Plan) -> tuple[str, ...]:
    """What is trained alone to measure what is planned here; or how to ask for it."""
    if not plan.baselines:
        return ("", "Planned, not measured: spec.baseline.train names models to be trained alone too.")
    from modelchain.cli.table import Column, count, render

    columns = (
        Column("ALONE"),
        Column("MODEL OF"),
        Column("EPOCHS", right=True),
        Column("MACS", right=True),
        Column("BUDGET", right=True),
    )
    rows = [
        (
            f"{run.name} (of the chain)" if run.own else run.name,
            run.stage,
            str(run.epochs),
            count(run.macs),
            "-" if run.budget_macs is None else count(run.budget_macs),
        )
        for run in plan.baselines
    ]
    return (
        "",
        f"Trained alone after the chain, {count(plan.baseline_macs)} MACs more, to compare at equal {plan.metric}:",
        "",
        render(columns, rows),
    )
