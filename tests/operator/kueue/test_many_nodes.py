"""Chains of multi-node stages on simulated nodes, with the real scheduler and Kueue: no half-started ones dead-lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.many_nodes import environment, measure, parse_arguments
from tests.control_plane.simulated_nodes import GPUS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("many-nodes")]

NODES = 5  # for two stages of two; the fifth is what one more would take half of


def test_jobs_of_several_nodes_are_let_go_only_where_all_of_their_pods_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # which the benchmark sets
        monkeypatch.setenv(name, "")
    arguments = parse_arguments(["--nodes", str(NODES), "--chains", "5", "--seconds", "1"])
    with environment(tmp_path, NODES) as (plane, server):
        result = measure(plane, server, tmp_path, arguments)
    assert result.complete == 5, result
    assert result.most_gpus_let_go <= NODES * GPUS, "jobs that do not fit together wait for each other"
    assert result.half_started_at_end == 0
    assert (result.failures, result.most_attempts) == (0, 1)
