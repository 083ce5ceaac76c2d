from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest
import yaml

from modelchain import __version__
from modelchain.cli import COMMANDS, main, models
from modelchain.cost import parameters
from modelchain.errors import ConfigurationError, HeldError
from modelchain.families import LanguageModelConfig


def test_help_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [command for command in COMMANDS if f"    {command} " not in text] == []
    assert "65 bad data" in " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: modelchain {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"modelchain {__version__}\n"


def test_an_error_moves_no_cursor_and_is_one_line_for_each_problem(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "no\x1b[2Jsuch\u202efile.yaml"]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()


@pytest.mark.parametrize(
    "arguments", [[], ["train"], ["plan"], ["plan", "a", "b"], ["models", "-o", "xml"], ["--nope"]]
)
def test_wrong_usage_ends_with_64_and_one_line_that_says_why(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 64
    usage, *_, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: modelchain")
    assert error.startswith("error: ") and "--help" in error


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ConfigurationError("stage b: too large; write less"), 78, ["error: stage b: too large; write less"]),
        (HeldError("one\ntwo"), 80, ["error: one", "error: two"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_errors_are_lines_and_exit_codes(
    error: BaseException,
    code: int,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(models, "run", fail)
    assert main(["models"]) == code
    assert capsys.readouterr().err.splitlines() == lines


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(models, "run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m modelchain models | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MODEL")
    assert done.stderr == ""


def test_models_lists_the_family_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    header, first, *rest = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "MODEL"
    assert first.split() == [
        "ViT-T-16",
        "224/16",
        "192",
        "x",
        "12",
        "256",
        "x",
        "12",
        "512",
        "27.9",
        "M",
        "1.25",
        "G",
        "763",
        "M",
        "yes",
    ]
    assert any(line.startswith("open_clip/ViT-bigG-14 ") for line in rest)


def test_models_of_language_have_no_names_and_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--task", "LanguageModel"]) == 0
    said, example = capsys.readouterr().out.splitlines()
    assert (
        said
        == "Models of task LanguageModel have no names: write them out under languageModelConfig, for example"
    )
    config = yaml.safe_load(example)["languageModelConfig"]
    assert parameters(LanguageModelConfig.model_validate(config)) == 124_475_904
    assert main(["models", "--task", "LanguageModel", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_models_with_another_image_tower_are_listed_and_those_that_can_not_be_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    (resnet,) = [line for line in text.splitlines() if line.startswith("open_clip/RN50 ")]
    # 102,007,137 parameters, as OpenAI published it
    expected = "open_clip/RN50 224 RN50 512 x 12 1024 102 M 6.11 G 2.98 G taught only"
    assert " ".join(resnet.split()) == expected
    assert "52 of open_clip's can't be stages:" in text
    assert "they write captions too (CoCa): coca_ViT-B-32, coca_ViT-L-14, coca_base" in text
    assert main(["models", "-o", "json"]) == 0
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert listed["open_clip/RN50"]["parameters"] == 102_007_137
    assert listed["open_clip/RN50"]["openClipConfig"]["vision"]["name"] == "RN50"
    assert listed["open_clip/RN50"]["unavailable"] is None
    others = {name: model["unavailable"] for name, model in listed.items() if model["unavailable"]}
    assert len(others) == 52
    assert others["open_clip/coca_ViT-B-32"] == "they write captions too (CoCa)"


def test_models_of_timm_are_listed_with_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--task", "Classification"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["resnet50"] == ["2048", "23.5", "M", "4.09", "G", "yes", "taught", "only"]
    assert main(["models", "--task", "Classification", "-o", "json"]) == 0
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert (
        listed["resnet50"]["parameters"] == 23_508_032
    )  # torchvision's 25,557,032 less 1000 classes of 2048 + 1
    assert listed.keys() == lines.keys() - {"MODEL"}
    assert not listed["convnext_atto"]["batchNorm"]
