"""Shard indexes of webdataset (wids): which shards there are, and how many samples each has.

{"wids_version": 1, "shardlist": [{"url": "000.tar", "nsamples": 100, ...}, ...], ...}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from modelchain.errors import MissingInputError, UserDataError
from modelchain.resolved import ResolvedStore
from modelchain.shards import first_duplicate
from modelchain.store import NotFound, open_location, split_uri


@dataclass(frozen=True)
class Index:
    """The shards of a data set in order, and the samples in all of them."""

    shards: tuple[str, ...]
    samples: int


class _Shard(BaseModel):
    url: Annotated[str, Field(min_length=1)]
    nsamples: Annotated[int, Field(ge=0, strict=True)]


class _Document(BaseModel):
    shardlist: Annotated[list[_Shard], Field(min_length=1)]


def read_index(uri: str, access: ResolvedStore) -> Index:
    """Read an index. Relative addresses in it lie beside it.

    Raises MissingInputError where there is none, and UserDataError for anything else than an index.
    """
    folder, name = split_uri(uri)
    try:
        data, _ = open_location(folder, access).get(name)
    except NotFound:
        raise MissingInputError(f"{uri}: no such file") from None
    try:
        document = _Document.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserDataError(
            f"{uri}: is no shard index of webdataset: {where}: {first['msg'].lower()}; make one with `widsindex create`"
        ) from None
    shards = tuple(_beside(folder, shard.url) for shard in document.shardlist if shard.nsamples)
    twice = first_duplicate(shards)
    if twice is not None:
        raise UserDataError(f"{uri}: names {twice} twice; make the index anew")
    return Index(shards, sum(shard.nsamples for shard in document.shardlist))


def _beside(folder: str, url: str) -> str:
    if "://" in url or url.startswith("/") or folder == ".":
        return url
    return f"{folder.rstrip('/')}/{url}"
