"""Part `tests`: tests/gpu, by pytest. What it printed so far is there even if it is stopped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

from benchmarks.gpu.record import Record, part_arguments

ROOT = Path(__file__).parents[2]
DEVICE_VARIABLE = "MODELCHAIN_TEST_DEVICE"  # of tests/gpu
TEXT_LIMIT = 3000  # characters of a failure
PROCESSES = 4  # compiling and starting take processor time, not the GPU's
LINE = re.compile(r"(PASSED|FAILED|SKIPPED|ERROR)")


def main() -> None:
    options = part_arguments(__doc__)
    record = Record(options.record, options.seconds)
    log, results = options.record.with_suffix(".log"), options.record.with_suffix(".xml")
    on_gpu = options.device == "cuda"
    # The compiler for the CPU takes minutes on few cores.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--no-header",
        "-m",
        "gpu" if on_gpu else "gpu and not slow",
        "tests/gpu",
    ]
    command += ["-v", "--durations=10"]
    command += ["-p", "no:cacheprovider", "-o", "timeout=150", f"--junitxml={results}"]
    command += ["-n", str(PROCESSES)] if on_gpu else ["-n", "0"]
    environment = os.environ | {DEVICE_VARIABLE: options.device}
    seconds = max(5.0, record.seconds_left)
    record.put("command", command[1:])
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: object = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = f"stopped after {seconds:.0f} s"
    lines = log.read_text(errors="replace").splitlines()
    record.put("exitCode", code)
    if results.exists():
        record.attempt("tests", lambda: tests_of(results))
    else:
        record.put("lines", [line for line in lines if LINE.search(line)])
    record.put("output", lines[-40:])
    if code != 0:
        raise SystemExit(f"tests/gpu: {code}")


def tests_of(path: Path) -> dict[str, object]:
    """How each test fared, with the text of those that failed, out of pytest's JUnit file."""
    tests: dict[str, dict[str, object]] = {}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ET.parse(path).iter("testcase"):  # noqa: S314 - pytest has just written it
        outcome = "passed"
        entry: dict[str, object] = {"seconds": float(case.get("time", 0))}
        for child in case:
            if child.tag in {"failure", "error", "skipped"}:
                outcome = "skipped" if child.tag == "skipped" else "failed"
                entry["text"] = (child.text or child.get("message") or "")[-TEXT_LIMIT:]
        measured = {p.get("name", ""): p.get("value") for p in case.iter("property")}
        entry |= {"outcome": outcome} | ({"measured": measured} if measured else {})
        counts[outcome] += 1
        tests[f"{case.get('classname')}::{case.get('name')}"] = entry
    return {**counts, "each": tests}


if __name__ == "__main__":
    main()
