"""`modelchain run`: train a chain on this machine."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from modelchain.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from modelchain.local.display import Display
    from modelchain.resolved import ResolvedChain
    from modelchain.spec import ModelChain

SUMMARY = "train a chain on this machine; the same command again goes on where it was stopped"
EPILOG = """\
Ctrl-C stops at a checkpoint, a second Ctrl-C at once. A finished stage is never trained again; an edit of the file
trains anew only the stages that it changes and those that grow out of them.

exit codes:
  0         the chain is complete, whatever has become of models trained alone to compare (spec.baseline.train)
  1         a stage has failed more often than retry.limit allows
  64 to 78  trying again can't help: 65 bad data or a damaged artifact, 66 a missing input or artifact, 73 the store
            can't be written, 74 the disk is full, 77 the store refuses the credentials, 78 wrong configuration, or
            spec.suspend is set
  80        another run of this chain, here or on another machine, is under way
  130, 143  stopped by Ctrl-C, by SIGTERM

-o json prints one object a line; "event" is one of
  run       chain, store, logs, stages and baselines: [name, model, digest, steps, processes, microBatchSize]
  stage     stage, phase, reason, message, attempt, failures: a stage is in another phase
  progress  stage, attempt, activity, step, steps, samplesPerSecond, etaSeconds, loss, metrics
  failure   stage, attempt, counted, exitCode, reason, message, log, tail: an attempt has ended unfinished
  note      message
  result    chain, phase, exitCode, message, stages and baselines: [name, phase, step, steps, attempt, metrics,
            weightsUri], costRatioPlanned, speedupPlanned, speedupMeasured (factor, atLeast, metric, chainMacs, models:
            [name, target, macs, reached]): the last line
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "run",
        help=SUMMARY,
        description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="the chain's YAML file")
    parser.add_argument("--chain", metavar="NAME", help="which chain, if the file holds several")
    parser.add_argument("--store", metavar="URI", help="keep artifacts there instead of in spec.store.uri")
    parser.add_argument(
        "--processes",
        type=_positive,
        metavar="N",
        help="processes that train a stage together; default: one a visible GPU, else one",
    )
    parser.add_argument(
        "--micro-batch-size",
        type=_positive,
        metavar="M",
        help="samples of one forward pass of one process; default: as many as the file plans for one on the cluster",
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("auto", "lines", "json"),
        default="auto",
        help="auto: a live table on a terminal, else lines; json: one event a line",
    )
    parser.add_argument(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="where the trainer's logs go, in a folder for each run; default: .modelchain/logs beside the file",
    )
    parser.add_argument(
        "--retrain-missing",
        action="store_true",
        help="train again what was complete and has vanished from the store",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the chain; returns the exit code of the table in --help."""
    from modelchain.local.display import SteadyDisplay
    from modelchain.local.fitting import fit_chain, visible_gpus
    from modelchain.local.runner import Runner, RunOptions
    from modelchain.resolve import resolve
    from modelchain.store import open_store
    from modelchain.validation import load_chains

    directory = Path(arguments.file).resolve().parent  # of "-", standard input: where we are
    chain = _chosen(load_chains(arguments.file), arguments.chain)
    if arguments.store is not None:
        chain = _stored_in(chain, arguments.store)
    resolved = fit_chain(
        resolve(chain, base=directory),
        gpus=visible_gpus(),
        processes=arguments.processes,
        micro_batch_size=arguments.micro_batch_size,
    )
    options = RunOptions(
        directory=directory,
        logs=_log_folder(arguments.log_dir, directory, resolved),
        retrain_missing=arguments.retrain_missing,
        command=shlex.join(["modelchain", *sys.argv[1:]]),
    )
    display = SteadyDisplay(_display(arguments.output, resolved))
    try:
        code = Runner(resolved, open_store(resolved.store), options, display).run()
    finally:
        display.close()
        _remove_if_empty(options.logs)
    if code == ExitCode.OK and arguments.output != "json":
        print(f"report: modelchain report {shlex.quote(arguments.file)}")
    return code


def _chosen(chains: list[ModelChain], name: str | None) -> ModelChain:
    names = ", ".join(chain.metadata.name for chain in chains)
    if name is not None:
        found = next((chain for chain in chains if chain.metadata.name == name), None)
        if found is None:
            raise UsageError(f"--chain {name}: the file has no such chain; it has {names}")
        return found
    if len(chains) > 1:
        raise UsageError(f"the file holds {len(chains)} chains ({names}): choose one with --chain NAME")
    return chains[0]


def _stored_in(chain: ModelChain, uri: str) -> ModelChain:
    """The chain with another store. A relative path is relative to the working directory."""
    located = uri if "://" in uri else str(Path(uri).absolute())
    store = chain.spec.store.model_copy(update={"uri": located})
    return chain.model_copy(update={"spec": chain.spec.model_copy(update={"store": store})})


def _display(output: str, chain: ResolvedChain) -> Display:
    from modelchain.local.display import JsonDisplay, LineDisplay

    if output == "json":
        return JsonDisplay()
    if output == "auto" and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from modelchain.local.live import LiveDisplay

        return LiveDisplay(chain)
    return LineDisplay(chain)


def _log_folder(wanted: Path | None, directory: Path, chain: ResolvedChain) -> Path:
    """A new folder for this run's logs; in the system's temporary folder if it can't be made beside the file."""
    run_name = f"{chain.chain.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if wanted is not None:
        folder = wanted.absolute() / run_name
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"--log-dir {wanted}: cannot be written: {error.strerror}") from None
        return folder
    own = directory / ".modelchain"
    folder = own / "logs" / run_name
    try:
        folder.mkdir(parents=True)
        ignore = own / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
    except OSError:
        return Path(tempfile.mkdtemp(prefix=f"modelchain-{run_name}-"))
    return folder


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
