"""Pack what a bare machine with a GPU lacks: `.venv/bin/python benchmarks/gpu/pack.py --output .gpu-kit`.

The machine has Python 3.12 on x86-64 Linux, torch for CUDA with torchvision and timm, and no network. The kit brings
the packages of constraints.txt that come with neither, as wheels, and a small data set. run.py needs besides
only the working tree.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.kit import write_data  # noqa: E402

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
MAXIMUM_BYTES = 60 * 2**20
# With all they need that does not come with torch, torchvision, timm, pytest and their like.
PACKAGES = (
    "annotated-types",
    "boto3",
    "botocore",
    "braceexpand",
    "ftfy",
    "jmespath",
    "markdown-it-py",
    "mdurl",
    "open-clip-torch",
    "pydantic",
    "pydantic-core",
    "pygments",
    "python-dateutil",
    "rich",
    "s3transfer",
    "six",
    "typing-extensions",
    "typing-inspection",
    "urllib3",
    "wcwidth",
    "webdataset",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="made anew")
    folder = parser.parse_args().output
    if folder.exists() and not (folder / "wheels").is_dir() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is no kit: name another folder, or remove it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    download(folder / "wheels")
    write_data(folder / "data")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")
    if size > MAXIMUM_BYTES:
        raise SystemExit(f"{folder} is larger than {MAXIMUM_BYTES / 2**20:.0f} MiB; take something out of it")


def download(folder: Path) -> None:
    """The wheels, in the versions of constraints.txt, for the machine's Python."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [
        "--only-binary",
        ":all:",
        "--python-version",
        PYTHON,
        "--implementation",
        "cp",
        "--dest",
        str(folder),
    ]
    command += [part for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none") for part in ("--abi", abi)]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    subprocess.run([*command, *pinned((ROOT / "constraints.txt").read_text())], check=True)


def pinned(constraints: str) -> list[str]:
    """`name==version` of each package. Raises SystemExit for one without."""
    found = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", constraints, flags=re.MULTILINE))
    missing = [name for name in PACKAGES if name not in found]
    if missing:
        raise SystemExit(
            f"constraints.txt has no version of {', '.join(missing)}: `make constraints` writes it"
        )
    return [f"{name}=={found[name]}" for name in PACKAGES]


if __name__ == "__main__":
    main()
