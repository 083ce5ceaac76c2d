"""Run the kit on this machine: `python3 benchmarks/gpu/run.py --kit .gpu-kit --output OUT.json [--only PART]`.

Each part is a process with a time of its own; what it has recorded goes into OUT.json whatever becomes of it, and
OUT.json is written after each. All parts take at most five minutes, one alone at most two; --seconds gives more
or less. With --device cpu the same code runs on small shapes. Without --kit the packages must be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.record import failure, write_json  # noqa: E402

# Module and share of the time, the tests' first. What a part leaves goes to those behind it; the riskiest comes last.
PARTS = {
    "environment": ("environment", 15),
    "tests": ("cuda_tests", 90),
    "throughput": ("throughput", 95),
    "profile": ("kernels", 25),
    "memory": ("memory", 20),
    "programs": ("programs", 55),
}
SECONDS_FOR_ALL, SECONDS_FOR_ONE = 300.0, 120.0
TAIL_LINES = 30
GRACE_SECONDS = 3.0  # in which a part may end by itself


def main() -> int:
    options = parse_arguments()
    started = time.monotonic()
    parts = options.only or list(PARTS)
    seconds = options.seconds or (SECONDS_FOR_ONE if options.only else SECONDS_FOR_ALL)
    report: dict[str, Any] = {
        "startedAt": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
        "device": options.device,
        "seconds": seconds,
        "revision": revision(),
        "parts": {},
    }
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as name:
        folder = Path(name)
        try:
            environment = prepared_environment(options.kit, folder / "packages")
        except (OSError, subprocess.SubprocessError) as error:
            report["failed"] = failure(error)
            write_json(options.output, report)
            raise SystemExit(f"the kit's packages could not be installed: {error}") from None
        for index, part in enumerate(parts):
            shares = [PARTS[other][1] for other in parts[index:]]
            left = seconds - (time.monotonic() - started)
            report["parts"][part] = run_part(
                part, left * shares[0] / sum(shares), options, environment, folder
            )
            report["tookSeconds"] = time.monotonic() - started
            write_json(options.output, report)
            print(line_about(part, report["parts"][part]), flush=True)
    return 0 if all(whole(part) for part in report["parts"].values()) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kit", type=Path, metavar="FOLDER", help="what pack.py made")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="this part; may be repeated")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--seconds", type=float, help="for all parts together")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.kit is not None:
        options.kit = options.kit.resolve()
        if not (options.kit / "wheels").is_dir():
            parser.error(
                f"{options.kit} is no kit: `python benchmarks/gpu/pack.py --output FOLDER` makes one"
            )
    return options


def prepared_environment(kit: Path | None, packages: Path) -> dict[str, str]:
    """The environment of the parts: the kit's packages, installed into `packages`, and this working tree."""
    paths = [str(ROOT / folder) for folder in ("", "trainer", "operator")]
    if kit is not None:
        wheels = sorted(map(str, (kit / "wheels").glob("*.whl")))
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        command += ["--disable-pip-version-check", "--target", str(packages)]
        done = subprocess.run([*command, *wheels], capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            raise OSError(f"pip ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
        paths.insert(0, str(packages))
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def run_part(
    part: str, seconds: float, options: argparse.Namespace, environment: dict[str, str], folder: Path
) -> dict[str, Any]:
    """Start a part, stop it if it goes on when its time is over, and read what it has recorded."""
    record, log = folder / f"{part}.json", folder / f"{part}.log"
    command = [sys.executable, "-m", f"benchmarks.gpu.{PARTS[part][0]}", "--record", str(record)]
    command += ["--device", options.device, "--seconds", f"{max(1.0, seconds - GRACE_SECONDS):.1f}"]
    command += [] if options.kit is None else ["--kit", str(options.kit)]
    started = time.monotonic()
    with log.open("w") as output:
        # A session of its own: what it has started ends with it.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = (
                "done" if process.wait(timeout=max(1.0, seconds)) == 0 else f"exit code {process.returncode}"
            )
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
        for group in sessions_of(process.pid):
            with_signal(group)
        process.wait()
    result: dict[str, Any] = {"status": status, "seconds": time.monotonic() - started}
    try:
        result["result"] = json.loads(record.read_text())
    except (OSError, ValueError) as error:
        result["result"] = {}
        result["unread"] = f"{type(error).__name__}: {error}"
    if status != "done":
        result["output"] = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return result


def whole(result: dict[str, Any]) -> bool:
    """Whether a part came to its end and nothing in it failed."""
    return result["status"] == "done" and not failures(result["result"])


def sessions_of(pid: int) -> list[int]:
    """The process's group, and those of its descendants that have one of their own."""
    groups, members = {pid}, [pid]
    for member in members:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                found = [int(child) for child in children.read_text().split()]
                groups |= {os.getpgid(child) for child in found}
            except (OSError, ValueError):
                continue
            members += found
    return sorted(groups)


def with_signal(group: int) -> None:
    """Kill a process group that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def revision() -> str | None:
    """The commit of the working tree, where git knows it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def line_about(part: str, result: dict[str, Any]) -> str:
    """For who watches: how a part ended and what it found, in a line."""
    failed = failures(result["result"])
    found = f"{part}: {result['status']}, {result['seconds']:.0f} s"
    return found + "".join(f"\n  {where}: {error}" for where, error in failed)


def failures(entry: object, where: str = "") -> list[tuple[str, str]]:
    """All errors in what a part has recorded, and where in it."""
    if not isinstance(entry, dict):
        return []
    found = [(where, str(entry["error"])[:200])] if "error" in entry else []
    for name, inner in entry.items():
        found += failures(inner, f"{where}.{name}" if where else name)
    return found


if __name__ == "__main__":
    sys.exit(main())
