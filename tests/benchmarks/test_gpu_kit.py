"""benchmarks/gpu: the whole kit on the CPU with small shapes, and what it computes from what it sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import pack
from benchmarks.gpu.flops import forward_macs, peak_flops
from benchmarks.gpu.kernels import kernel_tables
from benchmarks.gpu.record import Record
from benchmarks.gpu.run import PARTS, SECONDS_FOR_ALL, failures
from benchmarks.gpu.settings import GPU
from benchmarks.gpu.synthetic import batches
from modelchain.families import ModelConfig, TextSpec, VisionSpec

ROOT = Path(__file__).parents[2]


def run(output: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code of run.py and what it wrote."""
    command = [
        sys.executable,
        "benchmarks/gpu/run.py",
        "--output",
        str(output),
        "--device",
        "cpu",
        *arguments,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert output.exists(), done.stderr
    return done.returncode, json.loads(output.read_text())


@pytest.mark.slow
def test_the_kit_measures_both_programs_on_the_cpu(tmp_path: Path) -> None:
    only = [part for name in ("environment", "throughput", "profile", "memory") for part in ("--only", name)]
    code, report = run(tmp_path / "out.json", *only, "--seconds", "500")
    results = {name: part["result"] for name, part in report["parts"].items()}
    assert code == 0, [failures(result) for result in results.values()]
    assert results["environment"]["matmulFlops"] > 0
    for setting in ("oneCaption", "taught", "sevenCaptions"):
        entry = results["throughput"][setting]
        ours, theirs = (entry["programs"][program] for program in ("modelchain", "open_clip"))
        assert entry["ratio"] == pytest.approx(ours["samplesPerSecond"] / theirs["samplesPerSecond"])
        assert 0 < ours["prepared"]["flopsPerSample"] < theirs["prepared"]["flopsPerSample"]  # texts are cut
        if setting != "taught":  # the same weights on the same batch; distillation differs
            first = [each["prepared"]["firstLoss"] for each in (ours, theirs)]
            assert first[0] == pytest.approx(first[1], rel=1e-2)  # bf16
    assert results["profile"]["oneCaption"]["operators"]
    assert results["memory"]["plainLargest"] == 4


@pytest.mark.long
def test_the_kit_runs_whole_programs_and_the_tests_for_gpus(tmp_path: Path) -> None:
    code, report = run(tmp_path / "out.json", "--only", "programs", "--only", "tests", "--seconds", "900")
    results = {name: part["result"] for name, part in report["parts"].items()}
    assert code == 0, [failures(result) for result in results.values()]
    assert results["programs"]["ratio"] > 0
    assert results["tests"]["tests"]["failed"] == 0
    assert results["tests"]["tests"]["passed"] >= 12


@pytest.mark.slow
def test_a_part_without_time_is_recorded_and_loses_no_others(tmp_path: Path) -> None:
    code, report = run(tmp_path / "out.json", "--only", "environment", "--only", "memory", "--seconds", "0.1")
    assert code == 1
    assert list(report["parts"]) == ["environment", "memory"]
    assert all(part["status"].startswith("stopped after") for part in report["parts"].values())


def test_an_entry_that_fails_is_recorded_with_its_cause_and_the_next_is_tried(tmp_path: Path) -> None:
    record = Record(tmp_path / "part.json", seconds=100)
    assert not record.attempt("broken", lambda: {}["missing"])
    assert record.attempt("whole", lambda: 3)
    assert not record.attempt("late", lambda: 3, needs_seconds=200)
    written = json.loads((tmp_path / "part.json").read_text())
    assert written["broken"]["error"] == "KeyError: 'missing'"
    assert "KeyError" in written["broken"]["traceback"][-1]
    assert written["whole"] == 3
    assert "200 s are needed" in written["late"]["outOfTime"]
    assert failures(written) == [("broken", "KeyError: 'missing'")]


def test_flops_are_those_that_torch_counts() -> None:
    from modelchain_trainer.model import build_model

    config = ModelConfig(
        embed_dim=48,
        vision=VisionSpec(image_size=64, patch_size=16, width=64, layers=3, head_width=32),
        text=TextSpec(context_length=77, width=96, layers=2, heads=3),
    )
    model = build_model(config, seed=1)
    images, tokens = torch.zeros(2, 3, 64, 64), torch.zeros(2 * 5, 20, dtype=torch.int64)
    # Not the fused kernels of the CPU: torch's counter does not know them.
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model.encode_image(images)
        model.encode_text(tokens)
    macs = forward_macs(config, {20: 5}, pooled_last_block=True)
    assert 2 * 2 * macs == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.slow
def test_flops_of_open_clip_are_those_that_torch_counts() -> None:
    from open_clip.model import CLIP

    from modelchain_trainer.model.open_clip_config import to_open_clip

    config = ModelConfig(
        embed_dim=48,
        vision=VisionSpec(image_size=64, patch_size=16, width=64, layers=3, head_width=32),
        text=TextSpec(context_length=77, vocab_size=49408, width=96, layers=2, heads=3),
    )
    described: Any = to_open_clip(config)["model_cfg"]
    model = CLIP(**described).train()  # in evaluation torch takes a kernel that its counter does not know
    images, tokens = torch.zeros(2, 3, 64, 64), torch.zeros(2, 77, dtype=torch.int64)
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(images, tokens)
    macs = forward_macs(config, {77: 1}, pooled_last_block=False)
    assert 2 * 2 * macs == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_peaks_are_told_apart_by_the_name_of_the_card() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("some other card") is None


def test_captions_are_as_long_as_the_settings_say() -> None:
    one, seven = (next(s for s in GPU if s.captions == captions) for captions in (1, 7))
    raw = [batch.tokens.argmax(-1) + 1 for batch in _shrunk(one)]
    assert torch.cat(raw).float().mean() == pytest.approx(13, abs=1)
    assert all(40 <= lengths.max() <= 77 for lengths in raw)
    lengths = torch.cat([batch.tokens.argmax(-1) + 1 for batch in _shrunk(seven)], dim=1).float()
    assert lengths.mean(dim=1).tolist() == pytest.approx([13, 20, 20, 20, 77, 77, 77], abs=2)


def _shrunk(setting: Any) -> Any:
    """The batches of a setting, with images of a few pixels."""
    import dataclasses

    return batches(dataclasses.replace(setting, image_size=2), pinned=False)


def test_kernels_are_ranked_and_gaps_between_them_measured() -> None:
    def event(name: str, start: float, duration: float, category: str = "kernel") -> dict[str, object]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}

    tables = kernel_tables(
        [
            event("sm90_xmma_gemm_bf16", 0, 4000),
            event("sm90_xmma_gemm_bf16", 3000, 3000),  # on another stream
            event("void at::native::vectorized_elementwise_kernel<4>", 8000, 1000),
            event("Memcpy HtoD (Pinned -> Device)", 9000, 1000, "gpu_memcpy"),
            event("aten::mm", 0, 10_000, "cpu_op"),
        ]
    )
    kernels, kinds = tables["kernels"], tables["kinds"]
    assert isinstance(kernels, list)
    assert isinstance(kinds, list)
    assert [(row["calls"], row["milliseconds"]) for row in kernels] == [(2, 7.0), (1, 1.0), (1, 1.0)]
    assert {row["kind"]: row["milliseconds"] for row in kinds} == {
        "matrix product": 7.0,
        "elementwise": 1.0,
        "copy": 1.0,
    }
    assert tables["idleShare"] == pytest.approx(0.2)
    assert tables["longestGapsMilliseconds"] == [2.0]


def test_in_the_time_for_all_parts_each_plain_setting_has_its_turn_before_what_compiles() -> None:
    share = SECONDS_FOR_ALL * PARTS["throughput"][1] / sum(seconds for _, seconds in PARTS.values())
    plain = [setting for setting in GPU if not setting.compile and setting.teacher is None]
    assert GPU[: len(plain)] == tuple(plain)
    assert sum(setting.seconds for setting in plain) < share
    assert all(setting.compile or setting.teacher for setting in GPU[len(plain) :])


def test_the_kit_takes_its_versions_from_the_constraints() -> None:
    wanted = pack.pinned((ROOT / "constraints.txt").read_text())
    assert [requirement.partition("==")[0] for requirement in wanted] == list(pack.PACKAGES)
    with pytest.raises(SystemExit, match=r"no version of .*pydantic"):
        pack.pinned("boto3==1.0\n")
