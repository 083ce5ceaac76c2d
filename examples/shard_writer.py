"""Write webdataset shards: tar files in which the files of one sample stand together and share their name."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Files = Mapping[str, bytes]  # of one sample, by extension


def write_shards(samples: Sequence[Files], folder: Path, name: str, samples_per_shard: int) -> list[Path]:
    """Write `<name>-0000.tar`, `<name>-0001.tar` ... into `folder`, and return their paths.

    The same samples give the same bytes. A shard that is there already in these bytes is not touched, so what
    was learned of it (its index, the digest of a chain) stays valid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for number, first in enumerate(range(0, len(samples), samples_per_shard)):
        path = folder / f"{name}-{number:04d}.tar"
        content = _tar(name, first, samples[first : first + samples_per_shard])
        if not path.exists() or path.read_bytes() != content:
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_bytes(content)
            unfinished.replace(path)
        paths.append(path)
    return paths


def _tar(name: str, first: int, samples: Sequence[Files]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in _numbered(name, first, samples):
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")  # its time, owner and mode are fixed
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _numbered(name: str, first: int, samples: Sequence[Files]) -> Iterator[tuple[str, Files]]:
    for number, files in enumerate(samples, start=first):
        yield f"{name}-{number:06d}", files
