from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelchain.shards import MAX_SHARDS, ShardPatternError, compact, count, expand, expand_all


@pytest.mark.parametrize(
    ("pattern", "shards"),
    [
        ("s3://data/one.tar", ["s3://data/one.tar"]),
        ("{0..3}", ["0", "1", "2", "3"]),
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{0..010}", ["000", "001", "002", "003", "004", "005", "006", "007", "008", "009", "010"]),
        ("{0..9..4}", ["0", "4", "8"]),
        ("{7..7}", ["7"]),
        ("{train,extra}.tar", ["train.tar", "extra.tar"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
    ],
)
def test_pattern_expands_as_in_a_shell(pattern: str, shards: list[str]) -> None:
    assert expand(pattern) == shards
    assert count(pattern) == len(shards)


@pytest.mark.parametrize(
    ("shards", "patterns"),
    [
        (["a/000.tar", "a/001.tar", "a/002.tar"], ["a/{000..002}.tar"]),
        (["8", "9", "10", "12"], ["{8..10}", "12"]),
        (["s3://b/v2/x.tar", "s3://b/v3/x.tar"], ["s3://b/v{2..3}/x.tar"]),
        (["099", "100", "1000"], ["{099..100}", "1000"]),
        (["b.tar", "a.tar"], ["b.tar", "a.tar"]),
    ],
)
def test_shards_that_count_up_are_written_as_ranges(shards: list[str], patterns: list[str]) -> None:
    assert compact(shards) == patterns


def test_a_brace_in_a_name_can_not_be_written() -> None:
    with pytest.raises(ShardPatternError, match="rename it"):
        compact(["a{0.tar"])


@given(
    st.lists(st.from_regex(r"[a1]{0,2}/?[0-9]{0,4}(\.tar)?", fullmatch=True), max_size=20)
    | st.builds(
        lambda first, many, width: [f"{n:0{width}d}.tar" for n in range(first, first + many)],
        *(st.integers(0, 1200), st.integers(1, 200), st.integers(1, 5)),
    )
)
def test_ranges_stand_for_the_shards_in_their_order(shards: list[str]) -> None:
    assert [shard for pattern in compact(shards) for shard in expand(pattern)] == shards


def test_the_papers_pattern_names_332_shards() -> None:
    shards = expand("s3://data/cc3m/{00000..00331}.tar")
    assert len(shards) == 332
    assert (shards[0], shards[-1]) == ("s3://data/cc3m/00000.tar", "s3://data/cc3m/00331.tar")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{}.tar", "is empty"),
        ("{3..1}.tar", "write {1..3}"),
        ("{0..9..0}", "step 0"),
        ("{0..9", "not closed"),
        ("0..9}", "not closed"),
        ("{{0..1}}", "nest"),
        ("{one}", "no range"),
        ("{0..b}", "no range"),
        ("{0...9}", "no range"),
        ("{a,}", "empty part"),
        ("{0..99999999}", str(MAX_SHARDS)),
    ],
)
def test_pattern_without_shards_says_why(pattern: str, words: str) -> None:
    with pytest.raises(ShardPatternError) as caught:
        expand(pattern)
    assert words in str(caught.value)
    assert pattern in str(caught.value)


def test_counting_a_huge_range_takes_no_memory() -> None:
    assert count("{0..999999999999}") == 10**12


def test_several_patterns_keep_their_order_and_refuse_a_repeated_shard() -> None:
    assert expand_all(["b.tar", "{0..1}.tar"]) == ["b.tar", "0.tar", "1.tar"]
    with pytest.raises(ShardPatternError, match=r"shard 1\.tar occurs twice"):
        expand_all(["{0..2}.tar", "1.tar"])


def test_too_many_shards_over_several_patterns_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelchain.shards.MAX_SHARDS", 100)
    assert len(expand_all(["a{0..98}", "b"])) == 100
    with pytest.raises(ShardPatternError, match="more than 100 shards in all"):
        expand_all(["a{0..99}", "b"])


@given(st.integers(0, 10**6), st.integers(0, 50), st.integers(1, 7), st.integers(1, 9))
def test_a_range_names_each_number_once_padded_alike(first: int, length: int, step: int, digits: int) -> None:
    last = first + length
    shards = expand(f"{{{first:0{digits}d}..{last:0{digits}d}..{step}}}")
    assert [int(shard) for shard in shards] == list(range(first, last + 1, step))
    if digits > len(str(last)):
        assert {len(shard) for shard in shards} == {digits}
