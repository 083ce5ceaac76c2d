from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelchain.cli import main
from modelchain.errors import ExitCode
from tests.modelchain.documents import digests, document

CC3M = str(Path(__file__).parents[3] / "examples" / "cc3m.yaml")
HEAVY = (
    "torch",
    "numpy",
    "boto3",
    "botocore",
    "matplotlib",
    "jinja2",
    "rich",
    "PIL",
    "kopf",
    "modelchain_trainer",
)


def test_the_papers_chain_prints_the_papers_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CC3M]) == 0
    text = capsys.readouterr().out
    assert "vit-l alone, 128 epochs" in text
    assert "planned: the chain costs 28.2 % of it" in text
    assert "planned: 5.57x the chain" in text
    assert "Planned, not measured: spec.baseline.train names models to be trained alone too." in text


def test_the_table_names_each_stage_with_its_size_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", CC3M])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "default/clip-vit-cc3m, 7 captions a sample"
    assert lines[2].split()[:4] == ["STAGE", "MODEL", "FROM", "PARAMETERS"]
    assert lines[5].split()[:9] == ["vit-b", "ViT-B-16", "vit-s", "150", "M", "38.4", "G", "18", "52.0"]


def test_who_teaches_is_shown_where_it_is_not_who_comes_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document({("stages", 2, "distillation"): {"teacher": "tiny"}})))
    main(["plan", str(path)])
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:6]]
    assert header[:4] == ["STAGE", "MODEL", "FROM", "TEACHER"]
    assert [row[2:4] for row in rows] == [["-", "-"], ["tiny", "tiny"], ["small", "tiny"]]
    main(["plan", str(path), "-o", "json"])
    assert [stage["teacher"] for stage in json.loads(capsys.readouterr().out)["stages"]] == [
        None,
        "tiny",
        "tiny",
    ]
    path.write_text(json.dumps(document({("distillation",): {"weight": 0}})))
    main(["plan", str(path)])
    assert "TEACHER" in capsys.readouterr().out, "that nobody teaches is said"


def test_it_says_what_grows_how_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chain.yaml"
    names = ("open_clip/ViT-B-16", "open_clip/ViT-L-14", "ViT-S-16")
    stages: list[dict[str, object]] = [
        {"name": f"m-{number}", "model": name} for number, name in enumerate(names)
    ]
    stages[2]["expansion"] = {"width": "Fresh"}
    path.write_text(json.dumps(document({("stages",): stages})))
    main(["plan", str(path)])
    text = capsys.readouterr().out
    near = "near-exact  vision.width 768 -> 1024: 1024 is no multiple of 768, and ln_pre writes into the residual"
    assert near in text
    assert (
        "resampled   vision.patchSize 16 -> 14: patch filters are resampled; moved embeddings by up to"
        in text
    )
    assert "m-1     exact       vision.layers 12 -> 24," in text
    assert "m-2     new         all weights; taught by m-1" in text
    main(["plan", str(path), "-o", "json"])
    growths = [stage["growth"] for stage in json.loads(capsys.readouterr().out)["stages"]]
    assert growths[0] is growths[2] is None
    moves = {change["dimension"]: change["moves"] for change in growths[1] if change["moves"]}
    assert moves.keys() == {"vision.patchSize", "vision.width"}
    assert 0 < moves["vision.width"]["least"] < moves["vision.width"]["most"] < 0.001
    assert {change["dimension"]: change["fidelity"] for change in growths[1]} == {
        "vision.patchSize": "resampled",
        "vision.width": "near-exact",
        "vision.layers": "exact",
        "vision MLP units": "exact",
        "text.width": "exact",
        "text MLP units": "exact",
        "embedDim": "exact",
    }


def test_the_memory_of_a_gpu_is_shown_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document({("job",): {"nodes": 2, "gpusPerNode": 4}})))
    main(["plan", str(path)])
    plain = capsys.readouterr().out
    main(["plan", str(path), "--gpu-gib", "80"])
    text = capsys.readouterr().out
    assert text.startswith(plain.rstrip())
    title, header, *rows = [line for line in text[len(plain) :].splitlines() if line]
    assert title == "Of each GPU of 80 GiB, by calculation; activations come on top:"
    assert header.split() == ["STAGE", "GPUS", "SHARDING", "KEPT", "GATHERED"]
    assert [row.split()[:3] for row in rows] == [[name, "8", "None"] for name in ("tiny", "small", "base")]

    main(["plan", str(path), "--gpu-gib", "0.5", "-o", "json"])
    base = json.loads(capsys.readouterr().out)["memory"][2]
    assert (base["stage"], base["processes"], base["sharding"]) == ("base", 8, "Full")
    assert base["keptBytes"] > 0
    assert base["gatheredBytes"] > 0


@pytest.mark.parametrize("size", ["0", "-1", "many", "inf", "nan"])
def test_a_gpu_of_no_size_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CC3M, f"--gpu-gib={size}"]) == ExitCode.USAGE
    assert f"'{size}' is no number of GiB, such as 80" in capsys.readouterr().err


def test_json_has_what_scripts_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CC3M, "-o", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["chain"]["costRatioPlanned"] == pytest.approx(0.282, abs=5e-4)
    assert plan["family"]["speedupPlanned"] == pytest.approx(5.57, abs=5e-3)
    assert [stage["name"] for stage in plan["stages"]] == ["vit-t", "vit-s", "vit-b", "vit-l"]
    small = plan["stages"][1]
    assert small["parameters"] == 62_355_841
    assert small["macsPerSample"] == 4_598_694_912 + 7 * 1_689_830_400
    assert small["samples"] == 2891445 // 1024 * 1024 * 24
    assert (
        small["macs"] == (3 * small["macsPerSample"] + plan["stages"][0]["macsPerSample"]) * small["samples"]
    )
    assert len(small["digest"]) == 64
    assert plan["chain"]["macs"] == sum(stage["macs"] for stage in plan["stages"])
    assert plan["largest"] == {"name": "vit-l", "macs": plan["stages"][3]["aloneMacs"]}


def test_models_that_are_trained_alone_stand_below_with_what_they_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chain.yaml"
    baseline = {"train": ["tiny", "base"], "epochs": 8, "budgetMatched": True}
    path.write_text(json.dumps(document({("baseline",): baseline})))
    main(["plan", str(path), "-o", "json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["metric"] == "pets/top1"
    by_name = {run["name"]: run for run in plan["baselines"]}
    assert by_name["tiny"]["inChain"], "the first stage is what it is alone"
    whole, matched = by_name["base-alone"], by_name["base-alone-matched"]
    assert (whole["stage"], whole["epochs"], whole["macs"]) == ("base", 8, plan["stages"][2]["aloneMacs"])
    assert matched["budgetMacs"] == plan["chain"]["macs"]
    assert matched["macs"] == whole["macs"] * matched["epochs"] / 8
    main(["plan", str(path)])
    text = capsys.readouterr().out
    assert "Trained alone after the chain" in text and "to compare at equal pets/top1" in text
    assert "tiny (of the chain)" in text


def test_digests_are_those_that_validate_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document()))
    main(["plan", str(path), "-o", "json"])
    assert [stage["digest"] for stage in json.loads(capsys.readouterr().out)["stages"]] == digests()


def test_several_chains_are_a_list_and_several_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chain.yaml"
    other = document() | {"metadata": {"name": "other", "namespace": "research"}}
    path.write_text(f"{json.dumps(document())}\n---\n{json.dumps(other)}")
    main(["plan", str(path), "-o", "json"])
    assert [plan["name"] for plan in json.loads(capsys.readouterr().out)] == ["family", "other"]
    main(["plan", str(path)])
    text = capsys.readouterr().out
    assert "default/family, 2 captions a sample" in text and "research/other, 2 captions a sample" in text


def test_a_bad_file_ends_with_its_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document({("training", "epochs"): -1, ("job", "nodes"): 3})))
    assert main(["plan", str(path)]) == 65
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.startswith("error: ") for line in captured.err.splitlines()] == [True, True]


def test_the_help_imports_no_types() -> None:
    program = "import sys; from modelchain.cli import build_parser; build_parser(); sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_planning_imports_nothing_heavy() -> None:
    program = (
        "import sys; from modelchain.cli import main; code = main(sys.argv[1:]);"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]; sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", CC3M], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
