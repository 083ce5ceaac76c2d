"""From the files of samples to rows of a batch: decoded, cropped, texts as numbers.

A thread that decodes takes the interpreter's lock between Pillow's and torch's calls, and a thread that starts a GPU's
kernels asks for it after each of them: beside a single decoding thread it starts two fifths as many
(benchmarks/decoding.py). So beside a GPU processes decode, and threads only hand them bytes and take pixels, without
the lock.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from modelchain.errors import ModelChainError
from modelchain_trainer.data.sample import (
    Cause,
    CorruptSampleError,
    Pixels,
    crop_and_resize_into,
    decode_image,
    enough_pixels,
    random_crop,
)
from modelchain_trainer.data.text_field import TextField

_SMALL_IMAGE = 1 << 16  # bytes in memory; opening such a file costs more than decoding it
_SMALL_IMAGES = 256 << 20  # bytes of them that are kept: all of a data set of thumbnails
_IMAGE_OVERHEAD = 1024  # bytes of an image besides its pixels
_LAST_SECONDS = 5.0  # from the end of a connection to that of the processes


class Files(NamedTuple):
    """The files of a sample."""

    sample: int  # its number in the index
    image: bytes
    texts: tuple[bytes, ...]
    crop: Sequence[float]  # CROP_NUMBERS uniform random numbers


class Unusable(NamedTuple):
    """A row that was left as it was."""

    row: int
    cause: Cause
    message: str


Row: TypeAlias = Files | Unusable


class DecodesRows(Protocol):
    """Decodes rows here or elsewhere. May be called from several threads at once."""

    def knows(self, sample: int) -> bool:
        """Whether it has the image of a sample, and needs no bytes of it."""
        ...

    def __call__(
        self, rows: Sequence[Row], images_BHW3: Pixels, tokens_CBT: NDArray[np.int64]
    ) -> list[Unusable]:
        """Write the pixels and texts of all rows, into zeros; returns those that are none, or have become so."""
        ...


class Decoder:
    """Decodes in the thread that asks. Travels to other processes, without the images that it keeps."""

    def __init__(
        self,
        field: TextField,
        text_keys: Sequence[str],
        *,
        image_size: int,
        crop_scale: tuple[float, float],
        draft: bool = True,
        small_images: int = _SMALL_IMAGES,
    ) -> None:
        """`draft`: as the chain's `data.draftDecoding`. `small_images`: bytes of small images that are kept."""
        self.field, self.text_keys, self.image_size = field, tuple(text_keys), image_size
        self._crop_scale, self._draft = crop_scale, draft
        self._enough = enough_pixels(image_size, crop_scale) if draft else None
        self._small_images: dict[int, Pixels] = {}
        self._small_bytes_left = small_images

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_images, (self.field, self.text_keys, self.image_size, self._crop_scale, self._draft)

    def __call__(
        self, rows: Sequence[Row], images_BHW3: Pixels, tokens_CBT: NDArray[np.int64]
    ) -> list[Unusable]:
        """As `DecodesRows`."""
        unusable: list[Unusable] = []
        for number, row in enumerate(rows):
            if isinstance(row, Unusable):
                unusable.append(row)
                continue
            try:
                image_HW3, texts = self._load(row)
            except CorruptSampleError as error:
                unusable.append(Unusable(number, error.cause, str(error)))
                continue
            height, width, _ = image_HW3.shape
            box = random_crop(width, height, self._crop_scale, row.crop)
            crop_and_resize_into(image_HW3, box, images_BHW3[number])
            for column, text in enumerate(texts):
                self.field.encode_into(text, tokens_CBT[column, number])
        return unusable

    def knows(self, sample: int) -> bool:
        """Whether the image of a sample was kept."""
        return sample in self._small_images

    def _load(self, files: Files) -> tuple[Pixels, list[Any]]:
        texts = [self.field.decode(data, key) for data, key in zip(files.texts, self.text_keys, strict=True)]
        image_HW3 = self._small_images.get(files.sample)
        if image_HW3 is None:
            image_HW3 = np.array(decode_image(files.image, enough=self._enough))
            self._keep(files.sample, image_HW3)
        return image_HW3, texts

    def _keep(self, sample: int, image_HW3: Pixels) -> None:
        """Keep a small image for the epochs to come. The first ones stay: most are seen about equally often."""
        size = image_HW3.nbytes + _IMAGE_OVERHEAD
        if size <= _SMALL_IMAGE and size <= self._small_bytes_left:
            self._small_bytes_left -= size  # threads may count past each other; it is no exact limit
            self._small_images[sample] = image_HW3


def _without_images(
    field: TextField, keys: Sequence[str], image_size: int, crop_scale: tuple[float, float], draft: bool
) -> Decoder:
    return Decoder(field, keys, image_size=image_size, crop_scale=crop_scale, draft=draft, small_images=0)


class DecodingEndedError(ModelChainError):
    """The processes that decode are gone, or one has failed in a way that no picture accounts for."""


class DecodingProcesses:
    """Decodes in processes: forks of one that imports torch, in a session of their own, so that signals for a trainer's
    process group are its own to answer. They end when it does. One more thread than there are processes waits its turn.
    """

    def __init__(self, decoder: Decoder, processes: int) -> None:
        """Start them; the first rows wait until torch is imported. Raises DecodingEndedError."""
        pairs = [socket.socketpair() for _ in range(processes)]
        theirs = [end.fileno() for _, end in pairs]
        try:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, theirs)],
                stdin=subprocess.PIPE,
                pass_fds=theirs,
                start_new_session=True,
            )
            assert self._server.stdin is not None
            with self._server.stdin as stream:
                pickle.dump(decoder, stream)
        except OSError as error:
            raise DecodingEndedError(f"processes that decode pictures can't be started: {error}") from error
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        for ours, end in pairs:
            end.close()
            self._idle.put(Connection(ours.detach()))

    def knows(self, sample: int) -> bool:  # noqa: ARG002
        """They keep no images: each would have others."""
        return False

    def __call__(
        self, rows: Sequence[Row], images_BHW3: Pixels, tokens_CBT: NDArray[np.int64]
    ) -> list[Unusable]:
        """As `DecodesRows`. Raises DecodingEndedError."""
        tokens_BCT = np.empty_like(tokens_CBT.swapaxes(0, 1), order="C")
        connection = self._idle.get()
        try:
            connection.send(rows)
            answer = connection.recv()
            if isinstance(answer, str):
                raise DecodingEndedError(
                    f"a process that decodes pictures failed: {answer}; its log says where"
                )
            _read_into(connection.fileno(), images_BHW3)
            _read_into(connection.fileno(), tokens_BCT)
        except (EOFError, OSError) as error:
            raise DecodingEndedError(self._how_it_ended()) from error
        finally:
            self._idle.put(connection)
        tokens_CBT[:] = tokens_BCT.swapaxes(0, 1)
        return answer

    def close(self) -> None:
        """End all of them, at once."""
        if self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()

    def _how_it_ended(self) -> str:
        try:
            code = self._server.wait(timeout=_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            return "a process that decodes pictures does not answer any more"
        if code not in (-signal.SIGKILL, 128 + signal.SIGKILL):  # of their server, or of one of them
            return f"a process that decodes pictures ended with exit code {code}; its log says more"
        return (
            "a process that decodes pictures was killed; where the node is short of memory, give the job more or lower "
            "training.dataWorkers"
        )


def _serve(files: Sequence[int]) -> int:
    """Fork for each socket, and wait for the forks. Returns the exit code of the first that failed, as shells count."""
    decoder: Decoder = pickle.load(sys.stdin.buffer)  # noqa: S301 - the trainer's
    torch.set_num_threads(1)
    for file in files:
        if not os.fork():
            for other in set(files) - {file}:
                os.close(other)
            _answer(Connection(file), decoder)
    for file in files:
        os.close(file)
    for _ in files:
        _, status = os.wait()
        if (code := os.waitstatus_to_exitcode(status)) != 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
            return 128 - code if code < 0 else code
    return 0


def _answer(connection: Connection, decoder: Decoder) -> NoReturn:
    """Decode until whoever asks is gone."""
    code = 1
    try:
        while True:
            rows: Sequence[Row] = connection.recv()
            _decode(connection, decoder, rows)
    except (EOFError, OSError):
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def _decode(connection: Connection, decoder: Decoder, rows: Sequence[Row]) -> None:
    images_BHW3 = np.zeros((len(rows), decoder.image_size, decoder.image_size, 3), np.uint8)
    tokens_BCT = np.zeros((len(rows), len(decoder.text_keys), decoder.field.width), np.int64)
    try:
        unusable = decoder(rows, images_BHW3, tokens_BCT.swapaxes(0, 1))
    except Exception as error:  # noqa: BLE001 - whatever it is must reach the one who asked
        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(unusable)
    _write(connection.fileno(), (images_BHW3, tokens_BCT))


def _read_into(file: int, array: NDArray[Any]) -> None:
    """Fill an array whose memory is contiguous, without the interpreter's lock. Raises EOFError, OSError."""
    left = array.reshape(-1).view(np.uint8).data
    while left:
        read = os.readv(file, [left])
        if not read:
            raise EOFError
        left = left[read:]


def _write(file: int, arrays: Iterable[NDArray[Any]]) -> None:
    for array in arrays:
        left = array.reshape(-1).view(np.uint8).data
        while left:
            left = left[os.write(file, left) :]


if __name__ == "__main__":
    sys.exit(_serve([int(argument) for argument in sys.argv[1:]]))
