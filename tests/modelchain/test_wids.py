"""Shard indexes of webdataset, as its own program makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modelchain.cli import main
from modelchain.resolved import ResolvedStore
from modelchain.shards import expand_all
from modelchain.wids import read_index
from tests.tar_files import write_tar

ACCESS = ResolvedStore(uri="")


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Three shards of 3, 4 and 5 samples."""
    return [
        str(
            write_tar(
                tmp_path / f"{number:03d}.tar",
                [
                    (f"{number}-{n}.{extension}", b"x")
                    for n in range(3 + number)
                    for extension in ("jpg", "txt")
                ],
            )
        )
        for number in range(3)
    ]


def test_what_widsindex_makes_is_written_as_data_of_a_chain(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    widsindex = Path(sys.executable).with_name("widsindex")
    subprocess.run([widsindex, "create", *shards], cwd=made, check=True, capture_output=True)
    assert main(["samples", f"{made}/shardindex.json"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data == {"shards": [f"{tmp_path}/{{000..002}}.tar"], "samples": 12}
    assert expand_all(data["shards"]) == shards


@pytest.mark.parametrize("folder", ["", "sub/"])
def test_relative_addresses_lie_beside_the_index(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    listed = [
        {"url": "a.tar", "nsamples": 3},
        {"url": "s3://b/c.tar", "nsamples": 4},
        {"url": "/d.tar", "nsamples": 5},
    ]
    Path(f"{folder}index.json").write_text(json.dumps({"wids_version": 1, "shardlist": listed}))
    index = read_index(f"{folder}index.json", ACCESS)
    assert index.shards == (f"{folder}a.tar", "s3://b/c.tar", "/d.tar")
    assert index.samples == 12


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no JSON", "the file: invalid json"),
        ('{"shardlist": []}', "shardlist: list should have at least 1 item"),
        ('{"datasets": []}', "shardlist: field required"),
        ('{"shardlist": [{"url": "a.tar"}]}', "shardlist.0.nsamples: field required"),
        (
            '{"shardlist": [{"url": "a.tar", "nsamples": -1}]}',
            "shardlist.0.nsamples: input should be greater",
        ),
        ('{"shardlist": [{"url": "a.tar", "nsamples": 1}, {"url": "a.tar", "nsamples": 1}]}', "a.tar twice"),
    ],
)
def test_what_is_no_index_is_refused(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.json").write_text(content)
    assert main(["samples", f"{tmp_path}/index.json"]) == 65
    assert words in capsys.readouterr().err


def test_nothing_is_printed_before_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [{"url": url, "nsamples": 1} for url in ("a.tar", "b{1}.tar")]
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": listed}))
    assert main(["samples", f"{tmp_path}/index.json"]) == 65
    out, err = capsys.readouterr()
    assert (out, "has a brace in its name; rename it" in err) == ("", True)


def test_a_missing_index_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", f"{tmp_path}/index.json"]) == 66
    assert f"{tmp_path}/index.json: no such file" in capsys.readouterr().err
