"""Rows that processes decode are those that a thread decodes, and the processes end with whoever asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from modelchain_trainer.data.decoding import Decoder, DecodingEndedError, DecodingProcesses, Files, Unusable
from modelchain_trainer.data.loader import TrainingLoader
from modelchain_trainer.data.sample import Cause
from modelchain_trainer.data.text_field import CaptionField, LabelField
from modelchain_trainer.data.tokenizer import Tokenizer
from tests.processes import wait_until
from tests.trainer.data.shards import index_of, noise, png, stage_of, write_shards

pytestmark = pytest.mark.slow

CROP = [0.5] * 40


class FailsField(LabelField):
    """Fails in a way that no sample accounts for, and says in which process."""

    def decode(self, data: bytes, key: str) -> int:  # noqa: ARG002
        """Raises ZeroDivisionError."""
        raise ZeroDivisionError(f"in process {os.getpid()}")


class KillsField(LabelField):
    """Ends its process by the signal that it has for a number of classes."""

    def decode(self, data: bytes, key: str) -> int:  # noqa: ARG002
        """Never returns."""
        os.kill(os.getpid(), self._classes)
        return 0


class NamesProcessField(LabelField):
    """The number of the process that decodes."""

    def decode(self, data: bytes, key: str) -> int:  # noqa: ARG002
        """That number."""
        return os.getpid()


def decoder(field: Any, keys: tuple[str, ...] = ("cls",)) -> Decoder:
    return Decoder(field, keys, image_size=16, crop_scale=(0.5, 1.0))


def rows_for(count: int, texts: int = 1, width: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return np.zeros((count, 16, 16, 3), np.uint8), np.zeros((texts, count, width), np.int64)


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_give_the_batches_that_threads_give(tmp_path: Path, processes: int) -> None:
    def make(number: int) -> dict[str, bytes]:
        picture = b"no picture" if number % 17 == 0 else noise(30, number) if number % 2 else png(number)
        texts = {
            "txt": b"number %d" % number,
            "long.txt": b"" if number % 23 == 5 else b"more of %d" % number,
        }
        return {"png": picture, **texts}

    shards = write_shards(tmp_path / "data", 60, 20, make)
    stage = stage_of(
        shards,
        60,
        batch=12,
        steps=10,
        data={
            "maxCorruptFraction": 1.0,
            "randomCropScale": [0.3, 1.0],
            "captionKeys": ["txt", "long.txt"],
            "blockMebibytes": 1,
        },
        training={"dataWorkers": processes},
    )
    index = index_of(shards, 60, tmp_path / "store", caption_keys=("txt", "long.txt"))
    field = CaptionField(Tokenizer(8))
    both = [
        TrainingLoader(index, stage, rank=0, world_size=1, first_step=0, field=field, processes=elsewhere)
        for elsewhere in (False, True)
    ]
    for here, there in zip(*both, strict=True):
        assert np.array_equal(here.images.numpy(), there.images.numpy())
        assert np.array_equal(here.tokens.numpy(), there.tokens.numpy())
    assert both[0].corrupt == both[1].corrupt
    assert both[0].corrupt[Cause.BAD_IMAGE]
    assert both[0].corrupt[Cause.BAD_CAPTION]


def test_what_is_unusable_is_said_and_the_others_of_its_part_are_decoded() -> None:
    there = DecodingProcesses(decoder(LabelField(5)), 1)
    rows = [
        Files(0, png(0), (b"3",), CROP),
        Unusable(1, Cause.MISSING_LABEL, "has no .cls"),
        Files(2, b"no picture", (b"1",), CROP),
        Files(3, png(3), (b"9",), CROP),
        Files(4, png(4), (b"4",), CROP),
    ]
    images, labels = rows_for(5)
    unusable = there(rows, images, labels)
    there.close()
    assert [(one.row, one.cause) for one in unusable] == [
        (1, Cause.MISSING_LABEL),
        (2, Cause.BAD_IMAGE),
        (3, Cause.BAD_LABEL),
    ]
    assert labels.ravel().tolist() == [3, 0, 0, 0, 4]
    here_images, here_labels = rows_for(5)
    assert decoder(LabelField(5))(rows, here_images, here_labels) == unusable
    assert np.array_equal(images, here_images)


def test_a_failure_that_no_sample_accounts_for_ends_the_attempt_with_its_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    there = DecodingProcesses(decoder(FailsField(5)), 1)
    with pytest.raises(
        DecodingEndedError, match=r"failed: ZeroDivisionError: in process \d+; its log says where"
    ):
        there([Files(0, png(0), (b"0",), CROP)], *rows_for(1))
    there.close()
    assert "in decode" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "was killed; where the node is short of memory, give the job more or lower"),
        (signal.SIGSEGV, "ended with exit code 139; its log says more"),
    ],
)
def test_processes_that_end_say_how(number: int, told: str) -> None:
    there = DecodingProcesses(decoder(KillsField(number)), 3)
    with pytest.raises(DecodingEndedError, match=told):
        there([Files(0, png(0), (b"0",), CROP)], *rows_for(1))
    there.close()


def test_nothing_is_decoded_after_the_end() -> None:
    there = DecodingProcesses(decoder(LabelField(5)), 1)
    there.close()
    with pytest.raises(DecodingEndedError):
        there([Files(0, png(0), (b"0",), CROP)], *rows_for(1))


def test_a_signal_for_the_trainer_s_process_group_is_the_trainer_s() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (ended.returncode, ended.stdout) == (0, "decoded\n"), ended.stderr


def test_processes_end_with_the_loader() -> None:
    there = DecodingProcesses(decoder(NamesProcessField(5)), 1)
    images, labels = rows_for(1)
    assert there([Files(0, png(0), (b"0",), CROP)], images, labels) == []
    there.close()
    wait_until(lambda: not is_running(int(labels[0, 0, 0])), "the process that decoded is gone")


SIGNALLED = """
import os, signal
from modelchain_trainer.data.decoding import DecodingProcesses, Files
from modelchain_trainer.data.text_field import LabelField
from tests.trainer.data.shards import png
from tests.trainer.data.test_decoding import CROP, decoder, rows_for
there = DecodingProcesses(decoder(LabelField(5)), 2)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
    os.killpg(0, number)  # while they begin
assert there([Files(0, png(0), (b"0",), CROP)], *rows_for(1)) == []
print("decoded", flush=True)
"""  # and ends without closing anything

ORPHANS = """
import os, signal
from tests.trainer.data.test_decoding import CROP, NamesProcessField, decoder, rows_for
from modelchain_trainer.data.decoding import DecodingProcesses, Files
from tests.trainer.data.shards import png
images, labels = rows_for(1)
there = DecodingProcesses(decoder(NamesProcessField(5)), 1)
there([Files(0, png(0), (b"0",), CROP)], images, labels)
print(labels[0, 0, 0], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_a_trainer_that_is_killed() -> None:
    ended = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    wait_until(lambda: not is_running(int(ended.stdout)), "the process that decoded is gone")


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
