from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelchain.cli import main
from tests.modelchain.documents import digests, document, resolved


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(json.dumps(document()))
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(document({("training", "epochs"): 1.5, ("data", "samples"): "12k"}), indent=1))
    return str(path)


def test_a_good_file_is_one_line_a_chain(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", good]) == 0
    tiny, small, base = (digest[:8] for digest in digests())
    captured = capsys.readouterr()
    assert captured.out == f"{good}: family is valid: 3 stages (tiny {tiny}, small {small}, base {base})\n"
    assert captured.err == ""


def test_a_bad_file_is_one_line_a_problem(bad: str, good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", bad, good]) == 65
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first.startswith(f"error: {bad}:") and "spec.data.samples: " in first
    assert "spec.training.epochs: is 1.5, a whole number is needed; write 1 or 2" in second
    assert captured.out.startswith(f"{good}: family is valid")  # the other file is checked all the same


def test_a_missing_file_ends_with_66(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path / "none.yaml")]) == 66
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "no such file" in line


def test_json_of_a_good_file(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-o", "json", good]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["valid"], result["problems"]) == (True, [])
    (chain,) = result["chains"]
    assert (chain["namespace"], chain["name"]) == ("default", "family")
    assert chain["stages"] == [
        {"name": stage.name, "model": stage.model, "digest": stage.digest, "folder": stage.folder}
        for stage in resolved().stages
    ]


def test_json_of_a_bad_file_says_the_same_in_fields(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-o", "json", bad]) == 65
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert (result["valid"], result["chains"]) == (False, [])
    assert result["problems"][1] == {
        "document": bad,
        "line": next(n for n, line in enumerate(Path(bad).read_text().splitlines(), 1) if "1.5" in line),
        "path": "spec.training.epochs",
        "message": "is 1.5, a whole number is needed",
        "remedy": "write 1 or 2",
    }
