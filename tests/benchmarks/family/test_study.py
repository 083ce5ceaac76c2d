"""The study on the smallest scale: real data, real training, selection and report from its files alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
QUESTION = ("--data", "digits", "--families", "2", "--full-epochs", "1")
RECIPE = "trunk:first=1,later=1"


def study(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.family", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*arguments: str | Path) -> str:
    done = study(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_study_goes_from_data_to_tables_and_on_from_its_results_alone(tmp_path: Path) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    succeed("prepare", "digits", "--work", work)
    where = ("--work", work, "--results", results)
    listed = succeed(
        "list", "--work", work, *QUESTION, "--recipes", RECIPE, "--alone", "alone-wsd", "--seeds", "0",
        "--folds", "0", "--budget-matched",
    )  # fmt: skip
    assert "4 runs added" in listed  # the chain, w32 and w64 alone, w64 with the chain's compute

    succeed("run", *where, "--minutes", "0.06")  # no time for any
    assert not list(results.glob("*"))

    said = succeed("run", *where, "--jobs", "2")
    assert "4 of 4 done" in said
    files = sorted(results.glob("*"))
    assert [file.suffix for file in files] == [".json"] * 4
    chain = json.loads(next(file for file in files if "family2" in file.name).read_text())
    alone = json.loads(next(file for file in files if "w32-e1" in file.name).read_text())
    assert [stage["name"] for stage in chain["stages"]] == ["w32", "w64"]
    assert chain["stages"][0]["digest"] == alone["stages"][0]["digest"]
    # Whoever came second has found the stage in the store.
    assert sorted([chain["stages"][0]["shared"], alone["stages"][0]["shared"]]) == [False, True]
    for stage in chain["stages"]:
        assert stage["macs"] > 0
        assert [point["step"] for point in stage["curve"]] == [0, stage["steps"]]
        assert stage["curve"][-1]["metrics"]["digits/top1"] == stage["metrics"]["digits/top1"]
    assert not list((work / "store" / "stages").glob("*"))  # nothing grows out of any of them

    next(
        file for file in files if "w32-e1" in file.name
    ).unlink()  # its weights are gone, and its record is not
    said = succeed("run", *where, "--jobs", "2")
    assert "[0.0 min] 3 of 4 done" in said
    assert "4 of 4 done" in said
    assert sorted(results.glob("*")) == files

    shutil.rmtree(work)
    assert f"Chosen for family 2: `{RECIPE}`" in succeed("select", "--results", results, *QUESTION)
    table = succeed(
        "report", "--results", results, *QUESTION, "--split", "selection", "--images", tmp_path / "images"
    )
    share = chain["stages"][1]["metrics"]["digits/top1"]
    assert f"| w64 | {100 * share:.1f} |" in table
    assert "(2 epochs) |" in table
    picture = tmp_path / "images" / "family-digits-selection-family-2.png"
    assert picture.read_bytes().startswith(b"\x89PNG")

    refused = study("report", "--results", results, *QUESTION)
    assert refused.returncode == 1
    assert refused.stderr.startswith("benchmarks.family report: digits, test split: no recipe has results")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "unit"),
    [("digit-classes", "`digits/top1`, in percent"), ("topics", "`topics/loss`, in nats")],
)
def test_other_tasks_are_studied_alike(dataset: str, unit: str, tmp_path: Path) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    question = ("--data", dataset, "--families", "2", "--full-epochs", "1")
    succeed("prepare", dataset, "--work", work)
    succeed(
        "list", "--work", work, *question, "--recipes", RECIPE, "--alone", "alone-wsd", "--seeds", "0",
        "--folds", "0",
    )  # fmt: skip
    assert "3 of 3 done" in succeed("run", "--work", work, "--results", results)
    assert f"Chosen for family 2: `{RECIPE}`" in succeed("select", "--results", results, *question)
    table = succeed("report", "--results", results, *question, "--split", "selection")
    assert f"Metric: {unit}." in table
    assert "| w64 | " in table


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_leaves_no_result(tmp_path: Path) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    succeed("prepare", "digits", "--work", work)
    succeed(
        "list", "--work", work, "--data", "digits", "--families", "2", "--seeds", "0", "--folds", "0",
        "--recipes", "trunk:first=1,later=1",
    )  # fmt: skip
    for shard in (work / "data" / "digits").glob("*.tar"):
        shard.unlink()
    done = study("run", "--work", work, "--results", results)
    assert done.returncode == 1
    assert "0 of 1 done" in done.stdout
    assert "failed: {" in done.stderr
    assert not list(results.glob("*"))
