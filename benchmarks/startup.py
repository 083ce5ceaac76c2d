"""How long `modelchain plan` takes to start and to answer, beside a Python that does nothing.

    python benchmarks/startup.py

Prints the least processor and wall seconds of several runs of each, and their difference.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

CHAIN = Path(__file__).parents[1] / "examples" / "cc3m.yaml"
RUNS = 10


def main() -> None:
    """Measure both, in turn, and print a table."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "modelchain plan": [sys.executable, "-m", "modelchain", "plan", str(CHAIN)],
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            seconds[name].append(_measure(command))
    for name, runs in seconds.items():
        print(f"{name:<16}  {min(r[0] for r in runs):.2f} s processor  {min(r[1] for r in runs):.2f} s wall")


def _measure(command: list[str]) -> tuple[float, float]:
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, os.times()
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return user + system, wall


if __name__ == "__main__":
    main()
