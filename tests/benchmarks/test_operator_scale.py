"""The parts of the operator's benchmark, with few chains: what they measure then is no figure, but it is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.operator_scale import environment, parse_arguments
from benchmarks.simulated_endpoints import SilentEndpoints
from benchmarks.simulated_kubelet import DEPLOYMENT, Probe

SMALL = (
    "--idle=6 --live=3 --namespaces=2 --silent=4 --singles=2 --window=2 --heartbeat-seconds=2 --pod-start-seconds=1 "
    "--only=restart,scrape,silent"
)


def test_the_probes_are_those_of_the_chart() -> None:
    text = DEPLOYMENT.read_text(encoding="utf-8")
    for kind in ("livenessProbe", "readinessProbe"):
        probe = Probe.of_chart(kind)
        assert f"path: {probe.path}\n" in text.partition(f"{kind}:")[2]
        assert probe.failure_threshold == 3, "Kubernetes' default"
    assert yaml.safe_load(f"a: {Probe.of_chart('livenessProbe').timeout:g}") == {"a": 5}


def test_a_silent_endpoint_takes_a_request_and_says_nothing() -> None:
    endpoints = SilentEndpoints()
    try:
        command = f"import urllib.request; urllib.request.urlopen({endpoints.url(300)!r}, timeout=1)"
        ended = subprocess.run(
            [sys.executable, "-c", command], check=False, capture_output=True, text=True, timeout=240
        )
    finally:
        endpoints.close()
    assert "TimeoutError: timed out" in ended.stderr
    assert endpoints.accepted == 1


@pytest.mark.long
@pytest.mark.xdist_group("control-plane")
def test_every_part_measures_what_it_is_for(tmp_path: Path) -> None:
    arguments = parse_arguments(SMALL.split())
    with environment(tmp_path, arguments) as bench:
        result = bench.run(arguments)
    restart, scrape, silent = result.restart, result.scrape, result.silent
    assert restart is not None
    assert restart.chains == 6 + 3
    assert restart.cpu_seconds > 0
    assert len(restart.handovers) == 1
    assert restart.handovers[0] > 0
    assert restart.readiness.first_success is not None
    assert scrape is not None
    assert scrape.series_of_chains > restart.chains
    assert scrape.chains_left_out == 0
    assert silent is not None
    assert len(silent.without) == len(silent.beside) == 2
    assert silent.connections > 0
    assert "4 silent endpoints" in str(result)
