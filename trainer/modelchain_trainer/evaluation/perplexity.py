"""How well a language model predicts the tokens of documents.

Shapes: n sequences of the set, B of a batch, S tokens of each, V vocabulary.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from modelchain.errors import UserDataError
from modelchain.families import LanguageModelConfig
from modelchain.spec import EvaluationSpec
from modelchain_trainer.data.document_tokenizer import open_tokenizer
from modelchain_trainer.data.documents import find_documents
from modelchain_trainer.data.shard_list import ShardList
from modelchain_trainer.data.token_stream import (
    TokenStream,
    check_vocabulary,
    limited,
    open_tokens,
    positions,
    write_tokens,
)
from modelchain_trainer.evaluation.evaluation_set import EvaluationSet, Opening, Run
from modelchain_trainer.model.family import AnyModel
from modelchain_trainer.model.language_model import LanguageModel
from modelchain_trainer.retry_policy import RetryPolicy

_BATCH_TOKENS = (
    8192  # of one batch; the same for every world size, so that every world size computes the same
)
_MAX_CORRUPT_FRACTION = 0.01
_GREATEST_LOSS = 700.0  # whose exponential is a number still


@dataclass(frozen=True)
class PerplexitySet(EvaluationSet):
    """A set of documents, as tokens."""

    spec: EvaluationSpec
    stream: TokenStream

    @classmethod
    def open(cls, spec: EvaluationSpec, opening: Opening) -> PerplexitySet:
        """The set's documents, by the stage's tokenizer. Raises MissingInputError for shards that do not exist, and
        UserDataError where too many documents can't be used.
        """
        config = opening.stage.model_config_
        assert isinstance(config, LanguageModelConfig)
        retry_policy = RetryPolicy()
        tokenizer = open_tokenizer(opening.stage.data, opening.stage.store, retry_policy)
        check_vocabulary(tokenizer, config.vocabulary_size)
        shards = ShardList.find(spec.data.shards, opening.stage.store, retry_policy)
        key = spec.data.text_key or opening.stage.data.text_key
        found = find_documents(
            shards,
            key,
            opening.index_store,
            lambda _done, _total: opening.on_progress(),
            retry_policy=retry_policy,
        )
        with tempfile.TemporaryDirectory(prefix="modelchain-tokens-") as folder:
            found = limited(found, spec.data.samples)
            if not write_tokens(
                Path(folder),
                found,
                tokenizer,
                opening.on_progress,
                max_corrupt_fraction=_MAX_CORRUPT_FRACTION,
            ).tokens:
                raise UserDataError(
                    f"evaluation set {spec.name}: holds no document; check its shards and textKey"
                )
            return cls(spec, open_tokens(Path(folder), config.context_length))

    def measure(self, model: AnyModel, run: Run) -> dict[str, float]:
        """The mean cross-entropy `loss` of all tokens (nats) and its exponential, `perplexity`.

        The set is cut into sequences as training data is, and its last tokens are a shorter one. A token is predicted
        from those before it in its document and in its sequence.
        """
        assert isinstance(model, LanguageModel)
        stream, device = self.stream, model.token_embedding.weight.device
        size, total = stream.context_length, len(stream.tokens) - 1
        sequences = -(-total // size)
        batch = max(1, _BATCH_TOKENS // size)
        sum_n = torch.zeros(sequences, dtype=torch.float64, device=device)
        for number, first in enumerate(range(0, sequences, batch)):
            if number % run.group.world_size != run.group.rank:
                continue
            run.on_progress()
            rows = np.arange(first, min(first + batch, sequences))
            places = rows[:, None] * size + np.arange(size + 1)
            inside = torch.from_numpy(places[:, 1:] <= total).to(device)
            tokens = stream.tokens[np.minimum(places, total)].astype(np.int64)
            places_in_documents = torch.from_numpy(positions(tokens, stream.end_of_text)).to(device)
            tokens_BT = torch.from_numpy(tokens).to(device)
            with run.autocast(device):
                logits_BSV = model.predict(tokens_BT[:, :-1], places_in_documents[:, :-1])
            logits_BSV = logits_BSV.to(torch.promote_types(logits_BSV.dtype, torch.float32))
            loss_BS = functional.cross_entropy(
                logits_BSV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none"
            ).view(inside.shape)
            sum_n[first : first + len(rows)] = torch.where(inside, loss_BS, 0).double().sum(dim=1)
        loss = float(run.group.sum(sum_n).sum()) / total
        return {"loss": loss, "perplexity": math.exp(min(loss, _GREATEST_LOSS))}
