"""Documents of shards as one line of tokens, and its sequences in the order of a seed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from modelchain.artifacts import DATA, DataRecord
from modelchain.errors import ConfigurationError, UserDataError
from modelchain.resolved import ResolvedStage
from modelchain.spec import EvaluationSpec
from modelchain.store import StoreError, open_store
from modelchain.store.folder import FolderStore
from modelchain_trainer.data import documents
from modelchain_trainer.data.document_tokenizer import ByteTokenizer
from modelchain_trainer.data.documents import DocumentList, find_documents
from modelchain_trainer.data.left_out import find_shards, record_samples
from modelchain_trainer.data.published_tokenizer import byte_tokenizer, check_same_tokenizer
from modelchain_trainer.data.sequences import SequenceLoader, SequenceOrder
from modelchain_trainer.data.shard_list import Located, ShardList
from modelchain_trainer.data.source import DocumentSource
from modelchain_trainer.data.token_stream import TokenStream, open_tokens, write_tokens
from modelchain_trainer.evaluation.evaluation_set import Opening
from modelchain_trainer.evaluation.perplexity import PerplexitySet
from modelchain_trainer.retry_policy import RetryPolicy
from tests.trainer.data.shards import access
from tests.trainer.stages import smallest_stage

END = ByteTokenizer.end_of_text
TEXTS = ("one", "twotwo", "", "vier vier vier", "fünf", "six")
CONTEXT = 8


def tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def stage(tmp_path: Path, shards: Sequence[str], tokens: int, **data: Any) -> ResolvedStage:
    model = {"contextLength": CONTEXT, "vocabularySize": 320, "width": 16, "layers": 1, "heads": 2}
    document = smallest_stage(
        store={"uri": str(tmp_path / "store")},
        data={"shards": list(shards), "tokens": tokens, "samples": tokens // CONTEXT, **data},
        training={"globalBatchSize": 2},
    )
    return ResolvedStage.model_validate(document | {"task": "LanguageModel", "modelConfig": model})


def opened(made: ResolvedStage, folder: Path, on_progress: Callable[[], None] = lambda: None) -> TokenStream:
    """As training opens it."""
    from modelchain.families import LanguageModelConfig

    assert isinstance(made.model_config_, LanguageModelConfig)
    source = DocumentSource(made, made.model_config_)
    retry_policy = RetryPolicy()
    shards = ShardList.find(
        made.data.shards, made.store, retry_policy, max_missing=made.data.max_missing_shards
    )
    folder.mkdir()
    source.write(folder, shards, open_store(made.store), retry_policy, on_progress)
    return source.open(folder)


def line_of(texts: Sequence[str]) -> list[int]:
    return [token for text in texts for token in (END, *text.encode())] + [END]


def count(texts: Sequence[str]) -> int:
    return len(line_of(texts)) - 1


def test_tars_and_lines_of_json_give_the_same_tokens_in_the_order_of_the_shards(tmp_path: Path) -> None:
    texts = [text for text in TEXTS if text]
    parts = (texts[:2], texts[2:])
    tars = [
        tar(tmp_path / f"{n}.tar", {f"{i}.txt": text.encode() for i, text in enumerate(part)})
        for n, part in enumerate(parts)
    ]
    of_json = []
    for number, part in enumerate(parts):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text, "more": 1}) + "\n" for text in part) + "\n")
        of_json.append(str(path))
    of_tars = opened(stage(tmp_path, tars, count(texts)), tmp_path / "tars")
    of_lines = opened(stage(tmp_path, of_json, count(texts)), tmp_path / "lines")
    assert of_tars.tokens.tolist() == of_lines.tokens.tolist() == line_of(texts)
    body = stage(tmp_path, of_json, count(texts), textKey="json:body")
    with pytest.raises(
        UserDataError, match=r"line 3 of .*1.jsonl: .*in its field body \(it has: text, more\)"
    ):
        opened(body, tmp_path / "body")


def lines(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.mark.parametrize("kind", ["tar", "jsonl"])
def test_progress_is_told_while_documents_are_read_and_made_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    texts = [f"document {number}" for number in range(3000)]
    if kind == "tar":
        shard = tar(tmp_path / "0.tar", {f"{number}.txt": text.encode() for number, text in enumerate(texts)})
    else:
        shard = lines(tmp_path / "0.jsonl", texts)
    made = stage(tmp_path, [shard], count(texts))
    calls: list[None] = []
    first = opened(made, tmp_path / "first", lambda: calls.append(None))
    assert len(calls) >= 3000 // 512, "documents"
    calls.clear()
    monkeypatch.setattr(documents, "_BLOCK", Path(shard).stat().st_size // 100)
    second = opened(made, tmp_path / "second", lambda: calls.append(None))
    assert len(calls) >= 100, "blocks"
    assert first.layout == second.layout


def test_progress_is_told_while_a_set_for_perplexity_is_made_tokens(tmp_path: Path) -> None:
    shard = lines(tmp_path / "0.jsonl", [f"document {number}" for number in range(3000)])
    spec = EvaluationSpec.model_validate({"name": "set", "type": "Perplexity", "data": {"shards": [shard]}})
    calls: list[None] = []
    made = stage(tmp_path, [shard], 1)
    PerplexitySet.open(spec, Opening(made, open_store(made.store), lambda: calls.append(None)))
    assert len(calls) >= 3000 // 512


def test_long_documents_are_encoded_a_few_at_a_time(tmp_path: Path) -> None:
    texts = ["a" * (1 << 20)] * 9
    calls: list[None] = []
    opened(
        stage(tmp_path, [lines(tmp_path / "0.jsonl", texts)], count(texts)),
        tmp_path / "tokens",
        lambda: calls.append(None),
    )
    assert len(calls) >= 2 + 3  # blocks of 8 MiB, and 4 documents at a time


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_lines_are_whole_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(documents, "_BLOCK", block)
    texts = ["one", "a line longer than many blocks " * 3, "ü", "four"]
    shard = lines(tmp_path / "0.jsonl", texts)
    Path(shard).write_bytes(b"\n\n" + Path(shard).read_bytes()[:-1])  # the last one without its end
    stream = opened(stage(tmp_path, [shard], count(texts)), tmp_path / "tokens")
    assert stream.tokens.tolist() == line_of(texts)


@pytest.mark.parametrize("change", ["replaced", "grown", "cut short"])
def test_lines_that_change_while_they_are_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(documents, "_BLOCK", 20)
    path = Path(lines(tmp_path / "0.jsonl", TEXTS))
    content = path.read_bytes()

    class Changing(FolderStore):
        def get_range(self, key: str, start: int, length: int) -> bytes:
            data = super().get_range(key, start, length)
            if start == 20:
                path.write_bytes(
                    {
                        "replaced": content[::-1],
                        "grown": content + b'{"text": "more"}\n',
                        "cut short": content[:50],
                    }[change]
                )
                os.utime(path, ns=(1, 1))
            return data

    store = Changing(tmp_path)
    info = store.head(path.name)
    assert info is not None
    shards = ShardList([Located(str(path), store, info)], [], access(tmp_path))
    found = find_documents(shards, None, FolderStore(tmp_path / "store"), retry_policy=RetryPolicy())
    with pytest.raises(StoreError, match=r"0\.jsonl: was replaced, cut or grown while it was read"):
        list(found.documents)


@pytest.mark.parametrize("kind", ["tar", "jsonl"])
def test_other_documents_than_a_stage_began_with_are_refused_though_they_are_as_many_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / f"0.{kind}"

    def write(texts: Sequence[str]) -> None:
        if kind == "tar":
            tar(path, {f"{number}.txt": text.encode() for number, text in enumerate(texts)})
        else:
            lines(path, texts)

    texts = ["one", "two", "three", "four"]
    write(texts)
    made = stage(tmp_path, [str(path)], count(texts))
    store = open_store(made.store)

    def begin(attempt: int) -> None:
        record_samples(made, store, opened(made, tmp_path / str(attempt)), RetryPolicy())

    begin(1)
    begin(2)
    assert "written anew" not in caplog.text
    os.utime(path, ns=(1, 1))
    begin(3)
    assert "written anew since it began" in caplog.text
    write(["two", "one", "three", "four"])
    with pytest.raises(UserDataError, match=r"data\.json: the stage began with other samples"):
        begin(4)


def stream_of(texts: Sequence[str], folder: Path) -> TokenStream:
    folder.mkdir(parents=True, exist_ok=True)
    write_tokens(
        folder, DocumentList(iter(texts), (), ""), ByteTokenizer(), lambda: None, max_corrupt_fraction=0
    )
    return open_tokens(folder, CONTEXT)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text("ab", max_size=25), min_size=1, max_size=12))
def test_sequences_predict_every_token_once_but_those_that_fill_none(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = stream_of(texts, tmp_path_factory.mktemp("stream"))
    line = line_of(texts)
    assert len(stream) == (len(line) - 1) // CONTEXT
    tokens, places = stream.rows(np.arange(len(stream)))
    assert tokens[:, 1:].flatten().tolist() == line[1 : len(stream) * CONTEXT + 1]
    for row, positions in zip(tokens, places, strict=True):
        for column, token in enumerate(row):
            begins = token == END or column == 0
            assert positions[column] == (0 if begins else positions[column - 1] + 1)


def order(sequences: int, batch: int, seed: int = 0) -> list[NDArray[np.int64]]:
    made = SequenceOrder(sequences, seed=seed, global_batch_size=batch)
    return [made.step_sequences(step) for step in range(2 * made.steps_per_epoch)]


def test_an_epoch_sees_each_sequence_at_most_once_in_an_order_of_its_own() -> None:
    steps = order(23, 4)
    first, second = np.concatenate(steps[:5]), np.concatenate(steps[5:])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 20
    assert first.tolist() != second.tolist() != np.concatenate(order(23, 4, seed=1)[5:]).tolist()
    assert first.tolist()[:4] == [12, 19, 20, 8], "the order is the same in every release"
    with pytest.raises(ConfigurationError, match="fill no sequence; add documents"):
        SequenceOrder(0, seed=0, global_batch_size=4)
    with pytest.raises(ConfigurationError, match="more than the 3 sequences"):
        SequenceOrder(3, seed=0, global_batch_size=4)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_from_any_step_see_the_batches_of_one_from_the_first(
    tmp_path: Path, world_size: int
) -> None:
    stream = stream_of(["abc" * number for number in range(1, 20)], tmp_path)
    made = stage(tmp_path, ["unused.tar"], 1).training.model_copy(
        update={"global_batch_size": 4, "steps": 12}
    )

    def batches(rank: int, world_size: int, first_step: int) -> list[torch.Tensor]:
        loader = SequenceLoader(stream, made, rank=rank, world_size=world_size, first_step=first_step)
        return [batch.tokens for batch in loader]

    whole = batches(0, 1, 0)
    assert len(whole) == 12
    parts = [batches(rank, world_size, 7) for rank in range(world_size)]
    for step, wanted in enumerate(whole[7:]):
        assert torch.equal(torch.cat([part[step] for part in parts], dim=1), wanted)


def test_a_wrong_number_of_tokens_is_said_with_the_right_one(tmp_path: Path) -> None:
    shard = tar(tmp_path / "0.tar", {"a.txt": b"abc", "b.txt": b"defg"})
    with pytest.raises(UserDataError, match=r"data.tokens is 8, .* hold 9 tokens .* write tokens: 9"):
        opened(stage(tmp_path, [shard], 8), tmp_path / "tokens")


LONG = "a line longer than what is looked at first " * 3000
WHOLE = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "two", LONG))
UNFIT: list[tuple[str, str]] = [
    *((WHOLE[:-cut], r"was cut short: it ends at byte \d+,") for cut in (2, 10, len(LONG), len(LONG) + 10)),
    (WHOLE + '{"text": "on', "was cut short"),
    (WHOLE + '{"text": "on\0\0\0\0', "was cut short"),
]


@pytest.mark.parametrize(("content", "says"), UNFIT, ids=range(len(UNFIT)))
def test_lines_that_are_cut_short_are_an_error_at_once_and_count_as_missing_shards(
    tmp_path: Path, content: str, says: str
) -> None:
    good, bad = lines(tmp_path / "0.jsonl", ["one", "two"]), tmp_path / "1.jsonl"
    bad.write_text(content)
    for tokens in (8, 8 + count(["a much longer text"])):
        with pytest.raises(UserDataError, match=rf"1\.jsonl: {says}") as raised:
            opened(stage(tmp_path, [good, str(bad)], tokens), tmp_path / f"strict-{tokens}")
        assert "write tokens" not in str(raised.value)
        lenient = stage(tmp_path, [good, str(bad)], tokens, maxMissingShards=1)
        stream = opened(lenient, tmp_path / f"lenient-{tokens}")
        assert stream.left_out == (str(bad),)
        assert stream.tokens.tolist() == line_of(["one", "two"])
    with pytest.raises(UserDataError, match=r"8 tokens even without 1 that can't be used.*1\.jsonl; mend"):
        opened(stage(tmp_path, [good, str(bad)], 7, maxMissingShards=1), tmp_path / "fewer")
    with pytest.raises(UserDataError, match=says):
        opened(stage(tmp_path, [str(bad)], 8, maxMissingShards=1), tmp_path / "alone")


@pytest.mark.parametrize("empty", ["", "\n \n\n", "\n" * 200_000])
def test_a_shard_without_lines_holds_nothing_and_is_named(
    tmp_path: Path, empty: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards = [lines(tmp_path / "0.jsonl", ["one"]), str(tmp_path / "1.jsonl")]
    shards.append(lines(tmp_path / "2.jsonl", ["two"]))
    (tmp_path / "1.jsonl").write_text(empty)
    with caplog.at_level(logging.WARNING):
        stream = opened(stage(tmp_path, shards, 8), tmp_path / "tokens")
    assert (stream.tokens.tolist(), stream.left_out) == (line_of(["one", "two"]), ())
    assert sum(f"{shards[1]}: holds no documents" in line for line in caplog.messages) == 1
    with pytest.raises(UserDataError, match=r"hold 0 tokens: there is no document in them"):
        opened(stage(tmp_path, shards[1:2], 8), tmp_path / "nothing")


@pytest.mark.parametrize("last", ['{"text": bad}', "nothing", '{"text": "a \\" [{"} x'])
def test_a_last_document_that_is_bad_but_whole_is_one_that_can_not_be_used(tmp_path: Path, last: str) -> None:
    shard = lines(tmp_path / "0.jsonl", ["one", "two"])
    with Path(shard).open("a") as file:
        file.write(last)
    stream = opened(stage(tmp_path, [shard], 8), tmp_path / "tokens")
    assert (stream.tokens.tolist(), stream.unusable) == (line_of(["one", "two"]), {"BadText": 1})


def test_a_stage_that_has_begun_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    shard = lines(tmp_path / "0.jsonl", ["one", "two"])
    with Path(shard).open("a") as file:
        file.write('{"text": "cut he')
    made = stage(tmp_path, [shard], 8)
    with pytest.raises(UserDataError, match="was cut short"):
        opened(made, tmp_path / "fresh")
    store, patient = open_store(made.store), RetryPolicy()
    record = DataRecord(left_out=(), samples=1)
    store.put(f"{made.folder}/{DATA}", record.model_dump_json(by_alias=True).encode())
    found = find_shards(made, store, patient)
    assert found.settled
    documents = find_documents(
        ShardList.from_text(found.to_text(), made.store), None, store, retry_policy=patient
    )
    assert documents.left_out == ()
    assert list(documents.documents)[:2] == ["one", "two"]


def test_the_ends_of_names_are_read_in_either_case(tmp_path: Path) -> None:
    shard = lines(tmp_path / "0.JSONL", ["one", "two"])
    assert opened(stage(tmp_path, [shard], 8), tmp_path / "tokens").tokens.tolist() == line_of(["one", "two"])


@pytest.mark.parametrize("end", ["\n", "", "  ", "\n\n \n", "\r\n"])
def test_lines_are_whole_however_the_last_one_ends(tmp_path: Path, end: str) -> None:
    shard = tmp_path / "0.jsonl"
    shard.write_text(WHOLE.rstrip("\n") + end, newline="")
    texts = ["one", "two", LONG]
    stream = opened(stage(tmp_path, [str(shard)], count(texts)), tmp_path / "tokens")
    assert stream.tokens.tolist() == line_of(texts)


@pytest.mark.parametrize("kind", ["tar", "jsonl"])
def test_no_number_of_tokens_is_recommended_while_documents_are_damaged(tmp_path: Path, kind: str) -> None:
    if kind == "tar":
        shard = tar(tmp_path / "0.tar", {"a.txt": b"abc", "b.txt": b"\xff", "c.txt": b"defg"})
    else:
        shard = str(tmp_path / "0.jsonl")
        Path(shard).write_text('{"text": "abc"}\n{"text": "x\n{"text": "defg"}\n')
    where = "sample b of" if kind == "tar" else "line 2 of"
    with pytest.raises(
        UserDataError, match=rf"9 tokens without those of 1 documents that can't be used, .*{where}"
    ) as raised:
        opened(stage(tmp_path, [shard], 14), tmp_path / "tokens")
    assert "write tokens" not in str(raised.value)


MISTAKES: list[tuple[dict[str, bytes], dict[str, Any], str]] = [
    (
        {"a.json": b'{"text": "a"}'},
        {},
        r"has no sample with any of txt; its files are .json \(1\).*data.textKey",
    ),
    (
        {"a.txt": b"a", "2021.05.txt": b"b"},
        {},
        r"1 texts beside the 1 samples would be lost: .*ends at its first dot.*data.textKey",
    ),
    ({"a.txt": b"\xff\xfe\xff"}, {}, r"1 of the 1 documents .*sample a of .*0.tar: the .txt is not UTF-8"),
]


@pytest.mark.parametrize(("files", "data", "says"), MISTAKES)
def test_shards_without_texts_are_refused(
    tmp_path: Path, files: dict[str, bytes], data: dict[str, Any], says: str
) -> None:
    shard = tar(tmp_path / "0.tar", files)
    with pytest.raises(UserDataError, match=says):
        opened(stage(tmp_path, [shard], 100, maxCorruptFraction=0, **data), tmp_path / "tokens")


def test_tars_beside_lines_of_json_are_refused(tmp_path: Path) -> None:
    shards = [tar(tmp_path / "0.tar", {"a.txt": b"a"}), str(tmp_path / "1.jsonl")]
    (tmp_path / "1.jsonl").write_text('{"text": "a"}')
    with pytest.raises(UserDataError, match=r"0.tar: stands beside shards of lines of JSON"):
        opened(stage(tmp_path, shards, 4), tmp_path / "tokens")


def test_compressed_lines_of_json_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl.gz"
    path.write_bytes(b"\x1f\x8b")
    with pytest.raises(UserDataError, match=r"0.jsonl.gz: compressed .*unpack it to .jsonl"):
        opened(stage(tmp_path, [str(path)], 4), tmp_path / "tokens")


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> dict[str, str]:
    """A byte-pair tokenizer with an end of text, as data.tokenizer names it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat and the dog and the end"] * 3, trainer)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return {"uri": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_tokenizer_json_encodes_documents_and_a_written_out_end_is_text(
    tmp_path: Path, tokenizer_file: dict[str, str]
) -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(tokenizer_file["uri"])
    texts = ["the cat", "a <|endoftext|> in a text"]
    shard = tar(tmp_path / "0.tar", {f"{n}.txt": text.encode() for n, text in enumerate(texts)})
    end = made.token_to_id("<|endoftext|>")
    made.encode_special_tokens = True
    wanted = [token for text in texts for token in (end, *made.encode(text).ids)]
    stream = opened(stage(tmp_path, [shard], len(wanted), tokenizer=tokenizer_file), tmp_path / "tokens")
    assert stream.tokens.tolist() == [*wanted, end]
    assert wanted.count(end) == 2


@pytest.mark.parametrize(
    ("changes", "vocabulary", "says"),
    [
        ({"endOfText": "</s>"}, 320, r"has no token </s>; name its end of text in data.tokenizer.endOfText"),
        ({"sha256": "0" * 64}, 320, r"its sha256 is .*, not the 000"),
        ({}, 257, r"vocabularySize is 257, but the tokenizer has 2\d\d tokens; write vocabularySize: 320"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    tmp_path: Path, tokenizer_file: dict[str, str], changes: dict[str, str], vocabulary: int, says: str
) -> None:
    shard = tar(tmp_path / "0.tar", {"a.txt": b"the cat"})
    made = stage(tmp_path, [shard], 9, tokenizer=tokenizer_file | changes)
    smaller = made.model_config_.model_copy(update={"vocabulary_size": vocabulary})
    with pytest.raises(UserDataError, match=says):
        opened(made.model_copy(update={"model_config_": smaller}), tmp_path / "tokens")


def test_weights_that_come_with_another_tokenizer_are_refused(
    tmp_path: Path, tokenizer_file: dict[str, str]
) -> None:
    shard = tar(tmp_path / "0.tar", {"a.txt": b"the cat"})
    by_bytes = stage(tmp_path, [shard], 8).data
    by_file = stage(tmp_path, [shard], 8, tokenizer=tokenizer_file).data
    content = Path(tokenizer_file["uri"]).read_bytes()
    check_same_tokenizer(content, by_file, "weights")
    check_same_tokenizer(byte_tokenizer(), by_bytes, "weights")
    with pytest.raises(UserDataError, match=rf"^weights: .*sha256: {tokenizer_file['sha256']}"):
        check_same_tokenizer(content, by_bytes, "weights")
    with pytest.raises(UserDataError, match=rf"^weights: .*than data.tokenizer .*{tokenizer_file['sha256']}"):
        check_same_tokenizer(byte_tokenizer(), by_file, "weights")


def test_documents_that_can_not_be_used_are_counted_once(tmp_path: Path) -> None:
    shard = tar(tmp_path / "0.tar", {"a.txt": b"one two three", "b.txt": b"\xff", "c.txt": b"four five six"})
    made = stage(tmp_path, [shard], 14 + 14)
    stream = opened(made, tmp_path / "tokens")
    assert stream.unusable == {"BadText": 1}

    def counted(rank: int, first_step: int) -> dict[str, int]:
        return SequenceLoader(
            stream,
            made.training.model_copy(update={"global_batch_size": 2}),
            rank=rank,
            world_size=2,
            first_step=first_step,
        ).corrupt

    assert [counted(0, 0), counted(1, 0), counted(0, 1)] == [{"BadText": 1}, {}, {}]
