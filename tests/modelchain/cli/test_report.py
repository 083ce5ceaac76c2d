"""`modelchain report` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modelchain.cli import main
from tests.modelchain.report.made_up_chain import Training, document, resolved, train


def write(path: Path, *documents: dict[str, object]) -> str:
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return str(path)


def test_a_chain_file_gives_a_page_and_prints_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = document(tmp_path / "store")
    train(resolved(source))
    assert main(["report", write(tmp_path / "chain.yaml", source)]) == 0
    assert capsys.readouterr().out == "reports/digits/report.html\n"
    folder = tmp_path / "reports" / "digits"
    assert "47.3 %" in (folder / "report.html").read_text().replace("\u00a0", " ")
    names = {path.name for path in folder.iterdir()}
    assert names == {"report.html", "accuracy-compute.png", "loss-compute.png", "cost.png"}


def test_a_store_and_a_name_are_enough_and_baselines_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    train(resolved(document(store)))
    train(resolved(document(store, only=2, name="alone")), Training(final=(0.94,)))
    arguments = ["report", "--store", str(store), "default/digits", "--baseline", "default/alone"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out/report.html\n"
    assert "As good as vit-m trained alone" in (tmp_path / "out" / "report.html").read_text()


def test_store_replaces_the_one_of_the_file(tmp_path: Path) -> None:
    train(resolved(document(tmp_path / "copied")))
    path = write(tmp_path / "chain.yaml", document(tmp_path / "gone"))
    assert main(["report", path, "--output", str(tmp_path / "out")]) == 66
    assert main(["report", path, "--store", str(tmp_path / "copied"), "--output", str(tmp_path / "out")]) == 0


def test_a_file_of_several_chains_gives_a_folder_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [document(tmp_path / "store", stages=1, name=name) for name in ("one", "two")]
    for source in sources:
        train(resolved(source))
    path = write(tmp_path / "chains.yaml", *sources)
    assert main(["report", path, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split() == [
        f"{tmp_path}/out/{name}/report.html" for name in ("one", "two")
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{file}"], 66, "none of its stages has started"),
        (["missing.yaml"], 66, "missing.yaml: no such file"),
        (["default/digits"], 66, "default/digits: no such file"),
        (
            ["--store", "{folder}/store", "default/digits"],
            66,
            "there is no such chain; the store knows no chains",
        ),
        (["--store", "gs://bucket/x", "default/digits"], 78, "unknown kind of store"),
        (["{file}", "--baseline", "other.yaml", "--store", "{trained}"], 66, "other.yaml: no such file"),
        (["{file}", "--baseline", "{file}", "--store", "{trained}"], 78, "a baseline trains a model alone"),
        ([], 64, "the following arguments are required: chain"),
    ],
)
def test_what_a_user_did_is_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    source = document(tmp_path / "store")
    train(resolved(document(tmp_path / "trained")))
    places = {
        "{file}": write(tmp_path / "chain.yaml", source),
        "{folder}": str(tmp_path),
        "{trained}": str(tmp_path / "trained"),
    }
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert main(["report", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("error:")]) == 1
