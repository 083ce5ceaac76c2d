"""From the files of samples to rows of a batch: decoded, cropped, texts as numbers.

A thread that decodes takes the interpreter's lock between Pillow's and torch's calls, and a thread that starts a GPU's
kernels asks for it after each of them: beside a single decoding thread it starts a third as many
(benchmarks/decoding.py). So beside a GPU processes decode, and threads only hand them bytes and take pixels, without
the lock.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import socket
import traceback
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, NamedTuple, Protocol, TypeAlias

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
_LAST_SECONDS = 1.0  # from the end of a process's connection to its own

# Its server imports torch once, and has neither threads nor a GPU's context: forking it is safe and takes milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")


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
    """A process that decodes is gone, or has failed in a way that no picture accounts for."""


class DecodingProcesses:
    """Decodes in processes, which end with this one. One more thread than there are processes waits for its turn."""

    def __init__(self, decoder: Decoder, processes: int) -> None:
        self._all = [_DecodingProcess(decoder) for _ in range(processes)]
        self._idle: queue.SimpleQueue[_DecodingProcess] = queue.SimpleQueue()
        for process in self._all:
            self._idle.put(process)

    def knows(self, sample: int) -> bool:  # noqa: ARG002
        """They keep no images: each would have others."""
        return False

    def __call__(
        self, rows: Sequence[Row], images_BHW3: Pixels, tokens_CBT: NDArray[np.int64]
    ) -> list[Unusable]:
        """As `DecodesRows`. Raises DecodingEndedError."""
        process = self._idle.get()
        try:
            return process.decode(rows, images_BHW3, tokens_CBT)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End all of them, at once."""
        for process in self._all:
            process.close()


class _DecodingProcess:
    """Begins when it is first asked: until then its server imports torch, and so does the thread that asks wait."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._connection: Connection | None = None
        self._process: ForkServerProcess | None = None

    def decode(
        self, rows: Sequence[Row], images_BHW3: Pixels, tokens_CBT: NDArray[np.int64]
    ) -> list[Unusable]:
        tokens_BCT = np.empty_like(tokens_CBT.swapaxes(0, 1), order="C")
        try:
            connection = self._connection or self._begin()
            connection.send(rows)
            answer = connection.recv()
            if isinstance(answer, str):
                raise DecodingEndedError(f"a process that decodes pictures failed: {answer}")
            _read_into(connection.fileno(), images_BHW3)
            _read_into(connection.fileno(), tokens_BCT)
        except (EOFError, OSError) as error:
            raise DecodingEndedError(
                f"a process that decodes pictures {self._end()}; where the node is short of memory, give the job more "
                "or lower training.dataWorkers"
            ) from error
        tokens_CBT[:] = tokens_BCT.swapaxes(0, 1)
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _begin(self) -> Connection:
        _CONTEXT.set_forkserver_preload([__name__])
        self._connection, theirs = (Connection(end.detach()) for end in socket.socketpair())
        with theirs:
            process = _CONTEXT.Process(target=_serve, args=(theirs, self._decoder), daemon=True)
            process.start()
        self._process = process
        return self._connection

    def _end(self) -> str:
        """How it came to its end."""
        if self._process is None:
            return "could not be started"
        self._process.join(timeout=_LAST_SECONDS)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"was killed by signal {-code}"
        return f"ended with exit code {code}"


def _serve(connection: Connection, decoder: Decoder) -> None:
    """Decode until whoever asks is gone. Signals that end a process group are for that one to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    side, texts, width = decoder.image_size, len(decoder.text_keys), decoder.field.width
    while True:
        try:
            rows: Sequence[Row] = connection.recv()
        except EOFError:
            return
        images_BHW3 = np.zeros((len(rows), side, side, 3), np.uint8)
        tokens_BCT = np.zeros((len(rows), texts, width), np.int64)
        try:
            unusable = decoder(rows, images_BHW3, tokens_BCT.swapaxes(0, 1))
        except Exception:  # noqa: BLE001 - whatever it is must reach the one who asked
            connection.send(traceback.format_exc())
            continue
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
