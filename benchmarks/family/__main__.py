"""`python -m benchmarks.family`: prepare, list, run, report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.family import datasets, listing
from benchmarks.family.chain import Folders
from benchmarks.family.datasets import DATASETS, SPLITS, find_dataset, read_parts
from benchmarks.family.errors import StudyError
from benchmarks.family.recipes import RECIPES
from benchmarks.family.results import RESULTS
from benchmarks.family.runs import WORK_LIST, add_runs, read_runs
from modelchain.errors import ModelChainError


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
    return parser


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
