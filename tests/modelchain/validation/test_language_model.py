"""A chain of language models: valid as it is, and a message for each mistake."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest

from modelchain.cost import plan
from modelchain.resolve import resolve
from modelchain.spec import ModelChain
from modelchain.validation import check_file
from tests.modelchain.documents import REMOVED, Path, document

MODEL: dict[str, Any] = {"contextLength": 64, "vocabularySize": 320, "width": 32, "layers": 2, "heads": 4}
FILE = {"uri": "s3://data/tokenizer.json", "sha256": "a" * 64}


def language_model() -> dict[Path, Any]:
    """What makes the document a chain of two language models, anew each time."""
    return {
        ("task",): "LanguageModel",
        ("data",): {"shards": ["s3://data/{0000..0003}.tar"], "tokens": 1_000_000},
        ("evaluation",): [{"name": "val", "type": "Perplexity", "data": {"shards": ["s3://data/val.tar"]}}],
        ("stages",): [
            {"name": "small", "languageModelConfig": dict(MODEL)},
            {"name": "base", "languageModelConfig": MODEL | {"width": 48, "heads": 6, "layers": 3}},
        ],
    }


def test_an_epoch_is_as_many_sequences_as_the_tokens_fill(tmp_path: FilePath) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(language_model() | {("training", "globalBatchSize"): 100})))
    (checked,) = check_file(path)
    assert checked.chain is not None, checked.problems
    resolved = resolve(checked.chain)
    small, base = resolved.stages
    assert small.data.samples == 1_000_000 // 64
    assert small.training.steps_per_epoch == 1_000_000 // 64 // 100
    assert small.folder.startswith("stages/gpt-32x2-320-")
    assert small.digest != base.digest
    assert plan(resolved).sample == "64 tokens"


def test_tokens_and_tokenizer_decide_the_weights_and_where_it_lies_does_not() -> None:
    def digests(changes: dict[Path, Any]) -> set[str]:
        chain = ModelChain.model_validate(document(language_model() | changes))
        return {stage.digest for stage in resolve(chain).stages}

    def of_data(**data: Any) -> set[str]:
        return digests({("data", key): value for key, value in data.items()})

    found = [
        of_data(),
        of_data(tokens=999_999),
        of_data(textKey="json:body"),
        of_data(tokenizer=FILE),
        of_data(tokenizer=FILE | {"sha256": "b" * 64}),
        of_data(tokenizer=FILE | {"endOfText": "</s>"}),
    ]
    assert len(set.union(*found)) == 2 * len(found)
    assert of_data(tokenizer=FILE | {"uri": "tokenizer.json"}) == of_data(tokenizer=FILE)


def test_a_relative_tokenizer_lies_beside_the_chains_file_and_its_digest_does_not_depend_on_it(
    tmp_path: FilePath,
) -> None:
    chain = ModelChain.model_validate(
        document(language_model() | {("data", "tokenizer"): FILE | {"uri": "data/tokenizer.json"}})
    )
    here, there = resolve(chain), resolve(chain, base=tmp_path)
    for stage, located in zip(here.stages, there.stages, strict=True):
        assert stage.data.tokenizer is not None
        assert located.data.tokenizer is not None
        assert stage.data.tokenizer.uri == "data/tokenizer.json"
        assert located.data.tokenizer.uri == str(tmp_path / "data/tokenizer.json")
        assert stage.digest == located.digest


LAST = ("stages", 1, "languageModelConfig")
OF_LAST = "spec.stages[1].languageModelConfig"

MISTAKES: list[tuple[dict[Path, Any], str, str, str]] = [
    ({("data", "tokens"): REMOVED}, "spec.data.tokens", "is missing", "how many tokens"),
    (
        {("data", "samples"): 100},
        "spec.data.samples",
        "samples is read by task Clip and Classification, and the chain's is LanguageModel",
        "remove it",
    ),
    (
        {("data", "tokens"): 640},
        "spec.data.tokens",
        "640 tokens are 10 sequences, which do not",
        "10 or less, or add tokens",
    ),
    (
        {("data", "tokens"): 63},
        "spec.data.tokens",
        "63 tokens are 0 sequences",
        "add tokens, or make sequences shorter",
    ),
    ({("data", "tokens"): "Auto"}, "spec.data.tokens", "a whole number is needed", "the trainer counts"),
    *(
        (
            {("data", "shards"): [f"s3://data/{{0..3}}{ending}"]},
            "spec.data.shards[0]",
            message,
            remedy,
        )
        for ending, message, remedy in (
            (
                ".txt",
                "is neither a tar nor a .jsonl file",
                "write the data as tars of text files, or as .jsonl",
            ),
            (".parquet", "is neither a tar nor a .jsonl file", "tars of text files, or as .jsonl"),
            (".json", "is one JSON document", "`modelchain samples`"),
            (".jsonl.gz", "is compressed", "unpack it"),
        )
    ),
    (
        {("data", "shards"): ["a.jsonl", "b.tar"]},
        "spec.data.shards[1]",
        '"b.tar" stands beside shards of lines of JSON',
        "all as tars",
    ),
    (
        {("data", "shards"): ["a.JSONL"], ("data", "textKey"): "content"},
        "spec.data.textKey",
        'textKey "content" names a kind of file in a tar',
        "textKey: json:content",
    ),
    (
        {
            ("data", "shards"): ["a.jsonl"],
            ("data", "textKey"): "content",
            ("stages", 1, "data"): {"maxMissingShards": 1},
        },
        "spec.data.textKey",
        'textKey "content" names a kind of file in a tar',
        "textKey: json:content",
    ),
    (
        {("evaluation", 0, "data"): {"shards": ["a.jsonl"], "textKey": "txt"}},
        "spec.evaluation[0].data.textKey",
        "hold lines of JSON",
        "textKey: json:text",
    ),
    (
        {("evaluation", 0, "data", "shards"): ["a.jsonl"], ("data", "textKey"): "txt"},
        "spec.evaluation[0].data.shards",
        "hold lines of JSON",
        "textKey: json:text beside the shards",
    ),
    (
        {("evaluation", 0, "data", "shards"): ["a.csv"]},
        "spec.evaluation[0].data.shards[0]",
        "neither a tar",
        "or as .jsonl",
    ),
    ({(*LAST, "vocabularySize"): 384}, f"{OF_LAST}.vocabularySize", "is 384, not 320", "write 320"),
    (
        {("stages", 0, "languageModelConfig", "vocabularySize"): 256},
        "spec.stages[0].languageModelConfig.vocabularySize",
        "256 tokens are fewer than the 257 of the built-in tokenizer",
        "at least 257",
    ),
    ({(*LAST, "heads"): 3}, f"{OF_LAST}.heads", "head width", "write 6 heads"),
    ({(*LAST, "heads"): 5}, f"{OF_LAST}.heads", "do not divide", "multiple of 5"),
    ({(*LAST, "width"): 24}, f"{OF_LAST}.width", "shrinks from 32 to 24", "at least 32"),
    ({(*LAST, "contextLength"): 32}, f"{OF_LAST}.contextLength", "is 32, not 64", "write 64"),
    ({(*LAST, "activation"): "GeluTanh"}, f"{OF_LAST}.activation", "is GeluTanh, not Gelu", "write Gelu"),
    (
        {("stages", 1, "data"): {"tokenizer": FILE}},
        "spec.stages[1].data.tokenizer",
        'its tokens are others than those of "small", which it grows out of',
        "one tokenizer",
    ),
    (
        {("stages", 1, "data"): {"tokenizer": FILE}, ("stages", 1, "expansion"): {"width": "Fresh"}},
        "spec.stages[1].data.tokenizer",
        'its tokens are others than those of "small", which it learns from',
        "one tokenizer",
    ),
    (
        {(*LAST, "vocabularySize"): 384, ("stages", 1, "expansion"): {"width": "Fresh"}},
        f"{OF_LAST}.vocabularySize",
        'the stage can\'t learn from "small": vocabularySize is 384, not 320',
        "write 320",
    ),
    (
        {("evaluation", 0, "type"): "ZeroShot"},
        "spec.evaluation[0].type",
        "can't be evaluated",
        "write type: Perplexity",
    ),
    (
        {("data", "tokenizer"): FILE | {"uri": "~/tokenizer.json"}},
        "spec.data.tokenizer.uri",
        "only known to a shell",
        "write the path itself",
    ),
    (
        {("evaluation", 0, "classes"): ["a", "b"]},
        "spec.evaluation[0].classes",
        "sets have classes, this one is Perplexity",
        "remove it",
    ),
    ({("task",): "Clip"}, "spec.stages[0].languageModelConfig", "of task LanguageModel", "write modelConfig"),
]


def test_sources_of_documents_are_no_reason_to_add_tokens(tmp_path: FilePath) -> None:
    sources = [{"shards": ["s3://data/a.tar"], "samples": 1000}]
    changes: dict[Path, Any] = {("data", "tokens"): 63, ("data", "sources"): sources}
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(language_model() | changes)))
    (checked,) = check_file(path)
    told = [problem for problem in checked.problems if problem.path.startswith("spec.data.sources")]
    assert told
    assert not any("tokens are" in problem.message for problem in checked.problems)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[1] + mistake[2][:20])
def test_each_mistake_is_said_with_its_remedy(
    mistake: tuple[dict[Path, Any], str, str, str], tmp_path: FilePath
) -> None:
    changes, field, says, remedy = mistake
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(language_model() | changes)))
    (checked,) = check_file(path)
    found = [problem for problem in checked.problems if problem.path == field]
    assert found, checked.problems
    assert any(says in problem.message and remedy in problem.remedy for problem in found), found
