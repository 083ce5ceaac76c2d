"""Where a task's batches come from: samples of shards, decoded as they are needed, or documents, as tokens.

Rank 0 asks which shards there are; then one rank of each node puts what is known of them into a folder, which all of
its ranks map; each makes a loader of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from modelchain.errors import UserDataError
from modelchain.families import LanguageModelConfig
from modelchain.resolved import ResolvedData, ResolvedStage
from modelchain.shards import is_lines
from modelchain.store import Store
from modelchain_trainer.data.document_tokenizer import open_tokenizer
from modelchain_trainer.data.documents import find_documents
from modelchain_trainer.data.index import DatasetIndex, open_index, write_training_index
from modelchain_trainer.data.kept_index import index_missing
from modelchain_trainer.data.loader import Batch, TrainingLoader, widest_batch
from modelchain_trainer.data.sequences import SequenceLoader
from modelchain_trainer.data.shard_list import ShardList
from modelchain_trainer.data.text_field import NoText, TextField
from modelchain_trainer.data.token_stream import (
    TokenCount,
    TokenStream,
    check_vocabulary,
    open_tokens,
    write_tokens,
)
from modelchain_trainer.retry_policy import RetryPolicy

Progress = Callable[[], None]


class OpenData(Protocol):
    """A stage's data, as all ranks of a node map it."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Shards that can't be used, within what is allowed."""
        ...

    @property
    def layout(self) -> str:
        """Hash of which samples there are, in which order."""
        ...

    @property
    def versions(self) -> str:
        """Hash of the versions of the shards."""
        ...

    def __len__(self) -> int:
        """Samples."""
        ...


class Loader(Protocol):
    """The batches of one rank, from a step to the last."""

    @property
    def wait_seconds(self) -> float:
        """For how long batches were waited for so far."""
        ...

    @property
    def corrupt(self) -> dict[str, int]:
        """Samples that were replaced so far, by cause."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def close(self) -> None:
        """Stop; the loader can't be used afterwards."""
        ...


class DataSource(Protocol):
    """How a task reads its data."""

    def share_work(
        self,
        shards: ShardList,
        store: Store,
        retry_policy: RetryPolicy,
        on_progress: Progress,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        """Do this rank's part of what all can do side by side, and keep it in the store."""
        ...

    def write(
        self, folder: Path, shards: ShardList, store: Store, retry_policy: RetryPolicy, on_progress: Progress
    ) -> None:
        """Put what is known of the shards into an empty folder. Raises UserDataError for data that does not fit."""
        ...

    def open(self, folder: Path) -> OpenData:
        """What `write` wrote, mapped."""
        ...

    def widest_batch(self, rows: int) -> Batch:
        """A batch of so many rows whose texts are as long as any can be. What it holds means nothing."""
        ...

    def loader(self, data: Any, *, rank: int, world_size: int, first_step: int, pin_memory: bool) -> Loader:
        """The batches of a rank. `data` is what `open` gave."""
        ...


class SampleSource:
    """Samples of images and, where a task has a field for them, texts; decoded as they are needed."""

    def __init__(
        self, stage: ResolvedStage, field: TextField | None = None, text_keys: Sequence[str] = ()
    ) -> None:
        """No `field`: samples are images alone, and batches have tokens [0, B, 0]."""
        self._stage, self._field, self._text_keys = stage, field or NoText(), tuple(text_keys)

    def share_work(
        self,
        shards: ShardList,
        store: Store,
        retry_policy: RetryPolicy,
        on_progress: Progress,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        """Index shards that were never seen."""
        index_missing(
            shards, store, retry_policy, lambda _count: on_progress(), rank=rank, world_size=world_size
        )

    def write(
        self, folder: Path, shards: ShardList, store: Store, retry_policy: RetryPolicy, on_progress: Progress
    ) -> None:
        """The index."""
        write_training_index(
            folder,
            shards,
            self._stage.data,
            store,
            lambda _done, _total: on_progress(),
            text_keys=self._text_keys,
            retry_policy=retry_policy,
        )

    def open(self, folder: Path) -> DatasetIndex:
        """The index."""
        return open_index(folder, self._stage.store)

    def widest_batch(self, rows: int) -> Batch:
        """Black pictures, each text with its largest number at its end."""
        return widest_batch(self._stage, rows, texts=len(self._text_keys), width=self._field.width)

    def loader(
        self, data: DatasetIndex, *, rank: int, world_size: int, first_step: int, pin_memory: bool
    ) -> TrainingLoader:
        """Images and texts."""
        return TrainingLoader(
            data,
            self._stage,
            rank=rank,
            world_size=world_size,
            first_step=first_step,
            field=self._field,
            pin_memory=pin_memory,
            processes=pin_memory,  # beside a GPU
        )


class DocumentSource:
    """Documents as one line of tokens, which each node makes for itself at the start of an attempt: a corpus must fit
    on its disk, two or four bytes a token.
    """

    def __init__(self, stage: ResolvedStage, config: LanguageModelConfig) -> None:
        self._stage, self._config = stage, config

    def share_work(
        self,
        shards: ShardList,
        store: Store,
        retry_policy: RetryPolicy,
        on_progress: Progress,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        """Index tars that were never seen."""
        if not any(is_lines(shard.uri) for shard in shards.shards):
            index_missing(
                shards, store, retry_policy, lambda _count: on_progress(), rank=rank, world_size=world_size
            )

    def write(
        self, folder: Path, shards: ShardList, store: Store, retry_policy: RetryPolicy, on_progress: Progress
    ) -> None:
        """The tokens."""
        data = self._stage.data
        tokenizer = open_tokenizer(data, self._stage.store, retry_policy)
        check_vocabulary(tokenizer, self._config.vocabulary_size)
        found = find_documents(
            shards,
            data.text_key,
            store,
            lambda _done, _total: on_progress(),
            max_missing=data.max_missing_shards,
            max_hidden_fraction=data.max_corrupt_fraction,
            retry_policy=retry_policy,
        )
        count = write_tokens(
            folder, found, tokenizer, on_progress, max_corrupt_fraction=data.max_corrupt_fraction
        )
        fewer = found.left_out and data.tokens is not None and count.tokens < data.tokens
        if count.tokens != data.tokens and not fewer:
            raise _other_number(data, len(shards.shards), count, found.left_out)

    def open(self, folder: Path) -> TokenStream:
        """The tokens."""
        return open_tokens(folder, self._config.context_length)

    def widest_batch(self, rows: int) -> Batch:
        """Sequences of one document each: masks take as much whatever they hide."""
        positions = torch.arange(self._config.context_length + 1).expand(rows, -1)
        tokens = torch.stack([torch.zeros_like(positions), positions])
        return Batch(torch.empty((rows, 0, 0, 0), dtype=torch.uint8), tokens, 0)

    def loader(
        self, data: TokenStream, *, rank: int, world_size: int, first_step: int, pin_memory: bool
    ) -> SequenceLoader:
        """Sequences of tokens."""
        return SequenceLoader(
            data,
            self._stage.training,
            rank=rank,
            world_size=world_size,
            first_step=first_step,
            pin_memory=pin_memory,
        )


def _other_number(
    data: ResolvedData, shards: int, count: TokenCount, left_out: Sequence[str]
) -> UserDataError:
    """The error for another number of tokens than the chain says: with the right one, unless something is damaged."""
    hold = f"data.tokens is {data.tokens}, but the {shards} shards hold {count.tokens} tokens"
    if not (count.tokens or count.unusable or left_out):
        return UserDataError(f"{hold}: there is no document in them; fix data.shards")
    if left_out:
        return UserDataError(
            f"{hold} even without {len(left_out)} that can't be used, for example {left_out[0]}; mend those, or take "
            "them out of data.shards, and count anew"
        )
    if count.unusable:
        return UserDataError(
            f"{hold} without those of {count.unusable} documents that can't be used, for example {count.example}; "
            "write these documents again, or take them out of the shards, and count anew"
        )
    return UserDataError(
        f"{hold} (one for each document beside those of its text); write tokens: {count.tokens}, or fix data.shards "
        "or data.tokenizer"
    )
