"""Whether the growth engine makes the tensors of an earlier one, and how long both take, in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.growth_engines
    OMP_NUM_THREADS=1 python -m benchmarks.growth_engines --pairs 7 --commit b97f002

The packages of `--commit` are taken from this repository's git and imported under names of their own. Both engines are
given the same weights, none of which is at its initial value, in fp32; tensors are compared bit for bit. The seconds
are the processor's (of `expand` alone, on one thread), of both in turns; which one begins changes from pair to pair.

b97f002 is the last commit with an engine of CLIP's own, which the one of all families has replaced.
"""

from __future__ import annotations

import argparse
import importlib
import io
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelchain.catalogue import find
from modelchain.families import ModelConfig, TextSpec, VisionSpec
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.expansion import expand
from modelchain_trainer.model import build_model

REPOSITORY = Path(__file__).resolve().parents[1]
EARLIER = "earlier_"  # before the names of the earlier packages
_PACKAGES = {"modelchain": "modelchain", "trainer/modelchain_trainer": "modelchain_trainer"}
_IMPORT = re.compile(r"^(\s*(?:from|import)\s+)(modelchain(?:_trainer)?)\b", re.MULTILINE)

# Settings that the earlier engine has, in its words.
_WIDTHS: Mapping[WidthExpansion, str] = {WidthExpansion.EXACT: "exact", WidthExpansion.SLICE: "slice"}
_DEPTHS: Mapping[DepthExpansion, str] = {
    DepthExpansion.IDENTITY: "identity",
    DepthExpansion.INTERLEAVE: "stack",
}


@dataclass(frozen=True)
class Case:
    name: str
    small: ModelConfig
    large: ModelConfig
    width: WidthExpansion = WidthExpansion.EXACT
    depth: DepthExpansion = DepthExpansion.IDENTITY


# Grows weights of the case's small model.
Engine = Callable[[Mapping[str, Tensor], Case], dict[str, Tensor]]


def cases() -> list[Case]:
    """ViT-B to ViT-L at a sixteenth of its width, each dimension by itself, the paper's growth, and whole models."""
    base = _model((48, 3), (32, 3), embed=32)
    return [
        Case("ViT-B to L at 1/16", base, _model((64, 6), (48, 3), embed=48)),
        Case("widths doubled", base, _model((96, 3), (64, 3), embed=32)),
        Case("image width 48 to 72", base, _model((72, 3), (32, 3), embed=32)),
        Case("text width 32 to 40", base, _model((48, 3), (40, 3), embed=32)),
        Case("depth 3 to 7", base, _model((48, 7), (32, 7), embed=32)),
        Case(
            "depth, copies interleaved",
            base,
            _model((48, 7), (32, 7), embed=32),
            depth=DepthExpansion.INTERLEAVE,
        ),
        Case("embedding 32 to 50", base, _model((48, 3), (32, 3), embed=50)),
        Case("MLP ratio 4 to 5", base, _model((48, 3), (32, 3), embed=32, ratio=5.0)),
        Case("image 32 to 48, patch 8 to 6", base, _model((48, 3), (32, 3), embed=32, image=48, patch=6)),
        Case(
            "paper's",
            base,
            _model((64, 6), (48, 6), embed=48),
            WidthExpansion.SLICE,
            DepthExpansion.INTERLEAVE,
        ),
        Case("ViT-S-16 to ViT-B-16", find("ViT-S-16"), find("ViT-B-16")),
        Case("ViT-B-16 to ViT-L-16", find("ViT-B-16"), find("ViT-L-16")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the growth engine with an earlier one, tensor by tensor."
    )
    parser.add_argument("--commit", default="b97f002", help="of the earlier engine (default: %(default)s)")
    parser.add_argument(
        "--pairs", type=int, default=5, help="how often each grows the models (default: %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, seconds of the processor; the earlier engine is that of {arguments.commit}"
    )
    print(
        f"{'growth':<30} {'tensors':>7} {'equal':>7} {'earlier':>8} {'now':>8} {'now/earlier, median (range)':>29}"
    )
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        earlier = earlier_engine(arguments.commit, Path(folder))
        for case in cases():
            equal &= _compare(case, earlier, arguments.pairs)
    if not equal:
        sys.exit("the engines differ")


def earlier_engine(commit: str, folder: Path) -> Engine:
    """That of a commit. Raises subprocess.CalledProcessError where the repository lacks it."""
    command = ["git", "-C", str(REPOSITORY), "archive", commit, *_PACKAGES]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    for path, name in _PACKAGES.items():
        package = (folder / path).rename(folder / f"{EARLIER}{name}")
        for file in package.rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            file.write_text(_IMPORT.sub(rf"\1{EARLIER}\2", text), encoding="utf-8")
    sys.path.insert(0, str(folder))
    spec: Any = importlib.import_module(f"{EARLIER}modelchain.spec")
    resolved: Any = importlib.import_module(f"{EARLIER}modelchain.resolved")
    expansion: Any = importlib.import_module(f"{EARLIER}modelchain_trainer.expansion")

    def config(model: ModelConfig) -> Any:
        """The earlier engine's, which knows fewer fields; those that it lacks are at their defaults."""
        return spec.ModelConfig.model_validate(model.model_dump(exclude_defaults=True))

    def grow(state: Mapping[str, Tensor], case: Case) -> dict[str, Tensor]:
        how = resolved.ResolvedExpansion(width=_WIDTHS[case.width], depth=_DEPTHS[case.depth])
        return expansion.expand(state, config(case.small), config(case.large), how, seed=0)

    return grow


def _now(state: Mapping[str, Tensor], case: Case) -> dict[str, Tensor]:
    how = ResolvedExpansion(width=case.width, depth=case.depth)
    return expand(state, case.small, case.large, how, seed=0)


def _compare(case: Case, earlier: Engine, pairs: int) -> bool:
    """Print a line; whether all tensors are equal."""
    state = _trained(case.small)
    seconds: dict[Engine, list[float]] = {earlier: [], _now: []}
    tensors, differing = 0, [""]
    for pair in range(pairs + 1):  # the first one warms up, and is compared
        grown = {}
        for engine in (earlier, _now) if pair % 2 else (_now, earlier):
            begin = time.process_time()
            result = engine(state, case)
            seconds[engine].append(time.process_time() - begin)
            if pair == 0:
                grown[engine] = result
        if pair == 0:
            tensors, differing = len(grown[_now]), _differing(grown[earlier], grown[_now])
    before, after = seconds[earlier][1:], seconds[_now][1:]
    ratios = [now / then for now, then in zip(after, before, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(
        f"{case.name:<30} {tensors:>7} {tensors - len(differing):>7} "
        f"{statistics.median(before):>8.3f}s {statistics.median(after):>8.3f}s {spread:>29}",
        flush=True,
    )
    for name in differing[:5]:
        print(f"    differs: {name}")
    return not differing


def _differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same bits."""
    shared = before.keys() & after.keys()
    return sorted(
        (before.keys() ^ after.keys())
        | {name for name in shared if not _same_bits(before[name], after[name])}
    )


def _same_bits(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and torch.equal(
        before.contiguous().view(torch.int32), after.contiguous().view(torch.int32)
    )


def _trained(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of which none is at its initial value."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in build_model(config, seed=0).state_dict().items()
    }


def _model(
    vision: tuple[int, int],
    text: tuple[int, int],
    *,
    embed: int,
    ratio: float = 4.0,
    image: int = 32,
    patch: int = 8,
) -> ModelConfig:
    """(width, layers) of each tower, heads of 8 channels."""
    return ModelConfig(
        embed_dim=embed,
        vision=VisionSpec(
            image_size=image,
            patch_size=patch,
            width=vision[0],
            layers=vision[1],
            head_width=8,
            mlp_ratio=ratio,
        ),
        text=TextSpec(width=text[0], layers=text[1], heads=text[0] // 8, mlp_ratio=ratio),
    )


if __name__ == "__main__":
    main()
