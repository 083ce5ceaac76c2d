"""`python -m benchmarks.family`: prepare, list, run, select, report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.family import datasets, listing
from benchmarks.family.chain import Folders
from benchmarks.family.datasets import DATASETS, SPLITS, find_dataset, read_parts
from benchmarks.family.errors import StudyError
from benchmarks.family.recipes import RECIPES, variant
from benchmarks.family.results import RESULTS, read_results
from benchmarks.family.runs import WORK_LIST, add_runs, read_runs
from modelchain.errors import ModelChainError

if TYPE_CHECKING:
    from benchmarks.family.comparison import Index
    from benchmarks.family.report import Question


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.command(parsed)
    except (StudyError, ModelChainError) as problem:
        print(f"benchmarks.family {parsed.name}: {problem}", file=sys.stderr)
        return 1


def _prepare(arguments: argparse.Namespace) -> int:
    for name in arguments.data:
        dataset = find_dataset(name)
        parts = datasets.prepare(dataset, Folders(arguments.work).data(name), arguments.source)
        shown = ", ".join(f"{part} {each.samples}" for part, each in parts.items())
        print(f"{name}: {shown}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    dataset = find_dataset(arguments.data)
    at = listing.pairs(dataset, arguments.split, arguments.seeds, arguments.folds)
    chains = listing.chain_runs(dataset.name, arguments.split, arguments.families, arguments.recipes, at)
    models = arguments.models or listing.models_of(dataset.name, arguments.families)
    runs = chains + listing.alone_runs(
        dataset.name,
        arguments.split,
        models,
        arguments.alone,
        at,
        full=arguments.full_epochs or dataset.alone_epochs,
        parts=listing.ENVELOPE_PARTS if not arguments.full_only else (1,),
    )
    if arguments.budget_matched:
        parts = read_parts(Folders(arguments.work).data(dataset.name), dataset.name)
        runs += listing.budget_runs(chains, arguments.alone, parts)
    path = arguments.list or arguments.work / WORK_LIST
    order = {pair: place for place, pair in enumerate(at)}
    runs.sort(key=lambda run: order[run.seed, run.fold])  # each seed and fold is complete before the next
    print(f"{path}: {add_runs(path, runs)} runs added; it has {len(read_runs(path))}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.family.execute import Execution, Options

    runs = read_runs(arguments.list or arguments.work / WORK_LIST)
    options = Options(
        work=arguments.work,
        results=arguments.results,
        jobs=arguments.jobs,
        seconds=None if arguments.minutes is None else 60 * arguments.minutes,
        evaluations=arguments.evaluations,
        device=arguments.device,
        keep=arguments.keep,
    )
    tally = Execution(runs, options, _say).run()
    for run, log in tally.failed:
        print(f"failed: {run.to_json()}; log: {log}", file=sys.stderr)
    return 1 if tally.failed else 0


def _select(arguments: argparse.Namespace) -> int:
    from benchmarks.family.report import selection

    print(selection(*_question(arguments)), end="")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from benchmarks.family.plots import write_plots
    from benchmarks.family.report import report

    text, comparisons = report(*_question(arguments))
    if arguments.output is None:
        print(text, end="")
    else:
        arguments.output.write_text(text)
    if arguments.images is not None:
        for path in write_plots(comparisons, arguments.images, f"family-{arguments.data}-{arguments.split}"):
            print(path, file=sys.stderr)
    return 0


def _ablation(arguments: argparse.Namespace) -> int:
    from benchmarks.family.ablation import ablation

    print(ablation(*_question(arguments)), end="")
    return 0


def _question(arguments: argparse.Namespace) -> tuple[Index, Question]:
    from benchmarks.family.comparison import Index
    from benchmarks.family.report import Question

    dataset = find_dataset(arguments.data)
    question = Question(
        dataset=dataset.name,
        split=arguments.split,
        families=tuple(arguments.families),
        recipes=tuple(variant(text).text for text in arguments.recipes),
        alone=variant(arguments.alone).text if getattr(arguments, "alone", None) else None,
        full=getattr(arguments, "full_epochs", None) or dataset.alone_epochs,
        unit=arguments.unit,
    )
    return Index(read_results(arguments.results)), question


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.family", description="Measure whether a chain pays: many short runs."
    )
    commands = parser.add_subparsers(dest="name", required=True)

    prepare = commands.add_parser("prepare", help="write the shards of a data set, once")
    prepare.add_argument("data", nargs="+", metavar="DATA", help=", ".join(DATASETS))
    _add_work(prepare)
    prepare.add_argument(
        "--source", type=Path, help="where its files are; default: where the Debian package puts them"
    )
    prepare.set_defaults(command=_prepare)

    lister = commands.add_parser(
        "list",
        help="add runs to the work list",
        description="Add to the work list the chains of all recipes, and the models alone, on the same seeds and "
        "folds. Of the models alone these are four runs each, decayed to 1/8, 1/4, 1/2 and all of their epochs.",
        epilog="recipes: " + "; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items()),
    )
    _add_work(lister)
    lister.add_argument("--data", required=True, metavar="DATA", help=", ".join(DATASETS))
    lister.add_argument("--split", choices=SPLITS, default="selection", help="default: %(default)s")
    lister.add_argument("--families", nargs="+", default=["3"], metavar="F", help="3, 4, 7; default: 3")
    lister.add_argument(
        "--recipes", nargs="*", default=[], metavar="R", help="of the chains; with settings as trunk:later=3"
    )
    lister.add_argument("--alone", nargs="*", default=[], metavar="R", help="of the models alone")
    lister.add_argument("--models", nargs="+", metavar="M", help="alone; default: all of the families")
    lister.add_argument("--seeds", type=_seeds, metavar="A-B", help="default: 0-2 to select, 3-7 to test")
    lister.add_argument("--folds", default="all", help="all, paired (one a seed), or as 0,2; default: all")
    lister.add_argument(
        "--full-epochs", type=int, metavar="N", help="of a model alone; default: the data set's"
    )
    lister.add_argument(
        "--full-only", action="store_true", help="alone at its full epochs only, to compare settings"
    )
    lister.add_argument(
        "--budget-matched",
        action="store_true",
        help="also each model alone with all compute that its chain has spent",
    )
    lister.add_argument("--list", type=Path, help=f"default: {WORK_LIST} in --work")
    lister.set_defaults(command=_list)

    run = commands.add_parser("run", help="train the runs of the work list that have no result yet")
    _add_work(run)
    _add_results(run)
    run.add_argument("--list", type=Path, help=f"default: {WORK_LIST} in --work")
    run.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each; default: 1")
    run.add_argument("--minutes", type=float, help="stop in time; default: go on to the end")
    run.add_argument(
        "--evaluations",
        type=int,
        default=1,
        metavar="N",
        help="evaluate each stage N times; default: at its end",
    )
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    run.add_argument("--keep", action="store_true", help="keep weights that no run to come needs")
    run.set_defaults(command=_run)

    select = commands.add_parser(
        "select",
        help="what the selection rule of docs/method.md takes, from the results on the selection split",
    )
    _add_question(select, split="selection")
    select.set_defaults(command=_select)

    report = commands.add_parser("report", help="tables in Markdown, and plots, from the results alone")
    _add_question(report, split="test")
    report.add_argument("--output", type=Path, metavar="FILE", help="default: print it")
    report.add_argument("--images", type=Path, metavar="FOLDER", help="write plots there; default: none")
    report.set_defaults(command=_report)

    ablation = commands.add_parser(
        "ablation",
        help="chains by several recipes beside each other, with paired differences to the first one",
    )
    _add_question(ablation, split="selection", alone=False)
    ablation.set_defaults(command=_ablation)
    return parser


def _add_question(parser: argparse.ArgumentParser, *, split: str, alone: bool = True) -> None:
    """What is reported on; `alone`: the models alone as well."""
    _add_results(parser)
    parser.add_argument("--data", required=True, metavar="DATA", help=", ".join(DATASETS))
    parser.add_argument("--split", choices=SPLITS, default=split, help="default: %(default)s")
    parser.add_argument("--families", nargs="+", default=["3"], metavar="F", help="default: 3")
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=[],
        required=not alone,
        metavar="R",
        help="default: all with results" if alone else "the first is what the others are compared with",
    )
    if alone:
        parser.add_argument("--alone", metavar="R", help="of the models alone; default: the best one")
        parser.add_argument(
            "--full-epochs", type=int, metavar="N", help="of a model alone; default: the data set's"
        )
    parser.add_argument(
        "--unit",
        choices=("seed", "pair"),
        default="seed",
        help="what intervals are over; default: %(default)s",
    )


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, required=True, help="folder of shards, chains and weights")


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the JSON files; default: %(default)s"
    )


def _seeds(text: str) -> list[int]:
    """0-2 or 0,2"""
    try:
        first, dash, last = text.partition("-")
        return list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a range as 0-2 nor numbers as 0,2") from None


if __name__ == "__main__":
    sys.exit(main())
