"""How an attempt ended, in the words of the rank that caused it, and who is told: the pod, the store.

A rank that fails writes a `RankReport`; the launcher takes the root cause's, and passes it on as the
termination message of the pod and as failure.json of the attempt. No torch here: the launcher imports this.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

from modelchain.artifacts import FAILURE, Failure, attempt_folder
from modelchain.block import Block
from modelchain.errors import ExitCode, ModelChainError
from modelchain.resolve import largest_divisor
from modelchain.resolved import TERMINATION_LOG_VARIABLE, ResolvedStage, ResolvedTraining
from modelchain.store.local_files import explain
from modelchain_trainer.environment import ProcessEnvironment

MAX_TERMINATION_MESSAGE_BYTES = 4096  # Kubernetes cuts at this
MAX_MESSAGE_CHARACTERS = 2000
DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)

TERMINATED = "Terminated"  # reasons that are not the name of an error
KILLED = "Killed"
LOST_PEER = "LostPeerError"


class OutOfMemoryError(ModelChainError):
    """The model and its batch do not fit. Retried: what else runs on the machine may be to blame."""


class GpuOutOfMemoryError(ModelChainError):
    """A micro-batch does not fit on the GPU, which the stage has to itself: another attempt would end the same."""

    exit_code = ExitCode.CONFIG


class RankReport(Block):
    """What a failing rank leaves for its launcher."""

    failure: Failure

    def write(self, path: Path) -> None:
        """Replace `path`, whole or not at all."""
        unfinished = path.with_name(path.name + ".part")
        unfinished.write_text(self.model_dump_json(by_alias=True, exclude_none=True))
        unfinished.replace(path)

    @classmethod
    def read(cls, path: Path) -> RankReport | None:
        """The report at `path`; None where there is none that can be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None


def out_of_memory(
    share: int,
    training: ResolvedTraining,
    error: object,
    fitting: int | None = None,
    *,
    together: int = 1,
) -> GpuOutOfMemoryError:
    """What to do where `share` samples of a process, in micro-batches of the training's size, do not fit on its GPU.

    `fitting` is a smaller size that was tried and fits; `together` samples are never in different micro-batches.
    """
    size = min(share, training.micro_batch_size or share)
    remedies = (
        [] if training.gradient_checkpointing or together > 1 else ["set training.gradientCheckpointing"]
    )
    if size > together:
        half = together * largest_divisor(share // together, size // together // 2)
        smaller = f"{fitting}, which fits and" if fitting else f"{half} or Auto, which"
        remedies.insert(0, f"write training.microBatchSize: {smaller} changes no digest and no gradient")
    remedy = ", or ".join(remedies) or "take a larger GPU, or shard the model over more of them"
    return GpuOutOfMemoryError(
        f"a micro-batch of {size} samples does not fit into the GPU's memory; {remedy} ({error})"
    )


def one_line(text: str) -> str:
    """`text` without line breaks, and no longer than a message may be. Names of files that are not UTF-8 come with
    halves of surrogate pairs, which neither JSON nor a terminal takes: those stand as \\udcNN.
    """
    joined = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return joined if len(joined) <= MAX_MESSAGE_CHARACTERS else joined[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def write_termination_message(failure: Failure, variables: Mapping[str, str]) -> None:
    """Leave `failure` where Kubernetes looks for the termination message, if that file is there.

    MODELCHAIN_TERMINATION_LOG names the file; otherwise it is /dev/termination-log, if it exists. Never
    raises: the exit code says the most important part already.
    """
    named = variables.get(TERMINATION_LOG_VARIABLE)
    if not named and not DEFAULT_TERMINATION_LOG.exists():
        return
    message = failure.message
    text = failure.model_dump_json(by_alias=True, exclude_none=True)
    while len(text.encode()) > MAX_TERMINATION_MESSAGE_BYTES and message:
        message = message[: len(message) * 3 // 4]
        text = failure.model_copy(update={"message": message + "…"}).model_dump_json(
            by_alias=True, exclude_none=True
        )
    try:
        Path(named or DEFAULT_TERMINATION_LOG).write_text(text, encoding="utf-8")
    except OSError:
        return


def write_failure(stage: ResolvedStage, token: str, failure: Failure, *, seconds: float) -> bool:
    """Leave failure.json in the attempt's folder, as far as the store lets us in `seconds`; True if so.

    Several launchers of one attempt may write it. One that lost its peers, or was asked to end, only says so
    where nobody has given a better reason.
    """
    secondary = failure.reason in (LOST_PEER, TERMINATED)
    written = threading.Event()

    def write() -> None:
        from modelchain.store import ConflictError, open_store

        store = open_store(stage.store)
        key = f"{attempt_folder(stage.folder, token)}/{FAILURE}"
        data = failure.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode()
        with contextlib.suppress(ConflictError):
            store.put(key, data, if_absent=secondary)
        written.set()

    def attempt() -> None:
        try:
            write()
        except Exception:  # noqa: BLE001 - whatever it is, the store cannot be told; the exit code still speaks
            return

    thread = threading.Thread(target=attempt, name="failure.json", daemon=True)
    thread.start()
    thread.join(seconds)
    return written.is_set()


def failure_of(error: Exception, environment: ProcessEnvironment, step: int | None) -> tuple[Failure, bool]:
    """What `error`, which ended a rank, means; and whether it was foreseen, so needs no traceback."""
    foreseen = _foreseen(error, environment)
    cause = foreseen or error
    if foreseen is not None:
        code = foreseen.exit_code
    else:
        code = ExitCode.SOFTWARE if isinstance(error, AssertionError) else ExitCode.FAILURE
    message = str(cause) if foreseen is not None else f"unforeseen {type(error).__name__}: {error}"
    failure = Failure(
        exit_code=int(code),
        reason=type(cause).__name__,
        message=one_line(message),
        rank=environment.rank,
        step=step,
    )
    return failure, foreseen is not None


def _foreseen(error: Exception, environment: ProcessEnvironment) -> ModelChainError | None:
    if isinstance(error, ModelChainError):
        return error
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return explain(error, str(error.filename or environment.scratch), writing=True)
    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # torch's, without importing it
        return OutOfMemoryError(
            f"out of memory: lower training.microBatchSize or set training.gradientCheckpointing ({error})"
        )
    if isinstance(error, RuntimeError) and environment.world_size > 1:
        from modelchain_trainer.distributed.ranks import lost_peer

        return lost_peer(error, environment)
    return None


def signal_failure(signal_number: int, rank: int) -> Failure:
    """A rank that a signal ended without a word."""
    try:
        name = signal.Signals(signal_number).name
    except ValueError:
        name = f"signal {signal_number}"
    hint = "; the kernel does that when memory runs out" if name == "SIGKILL" else ""
    return Failure(
        exit_code=128 + signal_number,
        reason=KILLED,
        message=f"rank {rank} was killed by {name}{hint}",
        rank=rank,
    )


def silent_failure(exit_code: int, rank: int) -> Failure:
    """A rank that ended with an exit code and left no report."""
    return Failure(
        exit_code=exit_code,
        reason="Unknown",
        message=f"rank {rank} ended with exit code {exit_code} without saying why; its log may tell",
        rank=rank,
    )


def terminated_failure(message: str, rank: int | None = None, step: int | None = None) -> Failure:
    """An attempt that was asked to end, and did."""
    return Failure(
        exit_code=int(ExitCode.TERMINATED), reason=TERMINATED, message=message, rank=rank, step=step
    )
