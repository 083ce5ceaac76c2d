"""What benchmarks.operator_scale has measured: for programs as dataclasses, for people as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.simulated_kubelet import Answers

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Row:
    """A line of the table: what, how much, what it should be."""

    name: str
    value: str
    goal: str = ""


@dataclass(frozen=True)
class Window:
    """What the operator used within some time, a minute."""

    seconds: float
    cpu_share: float  # of one core
    api_requests: float
    api_writes: float
    store_requests: float
    memory_bytes: int  # resident, at its end


@dataclass(frozen=True)
class Rest:
    """Idle chains alone."""

    idle: int
    window: Window

    def rows(self) -> list[Row]:
        return [
            Row(f"API writes a minute, {self.idle} idle", f"{self.window.api_writes:.0f}", "none"),
            Row(f"memory, {self.idle} idle", mebibytes(self.window.memory_bytes), "under 128 MiB with 1,000"),
            Row(
                "S3 requests a minute and idle chain",
                f"{self.window.store_requests / self.idle:.2f}",
            ),
            Row("CPU at rest", f"{100 * self.window.cpu_share:.1f} % of a core"),
        ]


@dataclass(frozen=True)
class Restart:
    """From the start of the process until every chain had a pass. Scrapes that asked for that are part of it."""

    chains: int
    seconds: float
    cpu_seconds: float
    cpu_seconds_without_chains: float  # of a start where there are none
    peak_bytes: int
    api_writes: int
    liveness: Answers
    readiness: Answers
    handovers: list[float]  # seconds from the start to the next jobs of stages that ended while it was away

    def rows(self) -> list[Row]:
        live, ready = self.liveness, self.readiness
        return [
            Row(
                "restart: a kubelet would have ended it",
                "yes" if live.would_act else "no",
                "no",
            ),
            Row("  liveness probes that failed", f"{live.failures} of {live.probes}", "none"),
            Row("  slowest answer to one", f"{live.slowest:.2f} s", "under 5 s"),
            Row("  ready after", "never" if ready.first_success is None else f"{ready.first_success:.0f} s"),
            Row(
                "  processor time a chain", f"{1000 * self.cpu_seconds / self.chains:.2f} ms", "4 ms at most"
            ),
            Row("    of it for a start without chains", f"{self.cpu_seconds_without_chains:.1f} s for all"),
            Row("  every chain had a pass after", f"{self.seconds:.0f} s"),
            Row("  the first stage that ended meanwhile is followed after", f"{min(self.handovers):.0f} s"),
            Row(f"  all {len(self.handovers)} of them after", f"{max(self.handovers):.0f} s"),
            Row("  API writes meanwhile", f"{self.api_writes}"),
            Row("  memory, peak", mebibytes(self.peak_bytes), "under 400 MiB"),
        ]


@dataclass(frozen=True)
class Scrape:
    """Scrapes of /metrics. What the operator does besides is subtracted from the processor time."""

    series: int
    series_of_chains: int
    chains_left_out: int
    bytes: int
    cpu_seconds: float  # of one
    seconds: float  # of one
    health_seconds: float  # slowest answer of /healthz while nothing is scraped
    health_seconds_meanwhile: float  # while something is

    def rows(self) -> list[Row]:
        return [
            Row("scrape: processor time", f"{self.cpu_seconds:.2f} s", "0.5 s at most"),
            Row("  series", f"{self.series}", "bounded by a setting"),
            Row("  chains left out", f"{self.chains_left_out}"),
            Row("  slowest /healthz meanwhile", f"{self.health_seconds_meanwhile:.2f} s"),
            Row("  slowest /healthz otherwise", f"{self.health_seconds:.2f} s"),
        ]


@dataclass(frozen=True)
class Silent:
    """Stages that finish one by one, with and without silent endpoints."""

    endpoints: int
    connections: int  # that the silent endpoints took
    without: list[float]  # seconds
    beside: list[float]
    cpu_share_without: float  # of one core
    cpu_share_beside: float

    def rows(self) -> list[Row]:
        def both(share: float) -> str:
            return f"{quantile(self.beside, share):.2f} s, {quantile(self.without, share):.2f} s without"

        count = min(len(self.beside), len(self.without))
        return [
            Row(f"{self.endpoints} silent endpoints: stage done -> next job, p50", both(0.5)),
            Row(f"  p99 of {count}", both(0.99), "the same"),
            Row(
                "  CPU",
                f"{100 * self.cpu_share_beside:.0f} %, {100 * self.cpu_share_without:.0f} % without",
            ),
        ]


@dataclass(frozen=True)
class Handover:
    """Live chains beside idle ones, stage after stage to their end."""

    chains: int
    training: Window
    latencies: list[float]  # seconds, of stages that finish one by one
    burst: int
    burst_seconds: float  # from the first manifest to the last job
    burst_commit_seconds: float  # from the first manifest to the last
    burst_latencies: list[float]
    at_rest: Window

    def rows(self) -> list[Row]:
        p50, p99 = quantile(self.latencies, 0.5), quantile(self.latencies, 0.99)
        return [
            Row("stage done -> next job, p50", f"{p50:.2f} s"),
            Row(f"stage done -> next job, p99 of {len(self.latencies)}", f"{p99:.2f} s", "under 2 s"),
            Row(
                f"{self.burst} stages done together, transitions/s",
                f"{self.burst / self.burst_seconds:.1f}",
                "at least 20",
            ),
            Row("  manifests written/s meanwhile", f"{self.burst / self.burst_commit_seconds:.1f}"),
            Row("  stage done -> next job, p50", f"{quantile(self.burst_latencies, 0.5):.1f} s"),
            Row(f"API writes a minute, {self.chains} idle", f"{self.at_rest.api_writes:.0f}", "none"),
            Row(f"memory, {self.chains} idle", mebibytes(self.at_rest.memory_bytes)),
            Row("API requests a second, live chains train", f"{self.training.api_requests / 60:.1f}"),
            Row("S3 requests a second, live chains train", f"{self.training.store_requests / 60:.1f}"),
            Row("CPU, live chains train", f"{100 * self.training.cpu_share:.0f} % of a core"),
        ]


@dataclass
class Result:
    machine: str
    idle: int
    live: int
    namespaces: int
    heartbeat_seconds: float
    load: list[float] = field(
        default_factory=list
    )  # of the machine over the last 15 minutes, after each part
    rest: Rest | None = None
    restart: Restart | None = None
    scrape: Scrape | None = None
    silent: Silent | None = None
    handover: Handover | None = None
    peak_bytes: int = 0  # of the last process

    def __str__(self) -> str:
        parts = (self.rest, self.restart, self.scrape, self.silent, self.handover)
        rows = [row for part in parts if part is not None for row in part.rows()]
        rows.append(Row("memory, peak", mebibytes(self.peak_bytes)))
        wide, narrow = max(len(row.name) for row in rows), max(len(row.value) for row in rows)
        title = (
            f"{self.live} live chains (a heartbeat every {self.heartbeat_seconds:g} s) beside {self.idle} idle ones "
            f"in {self.namespaces} namespaces"
        )
        lines = (f"  {row.name:<{wide}}  {row.value:>{narrow}}  {row.goal}".rstrip() for row in rows)
        return "\n".join([self.machine, title, *lines])


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> str:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}; "
        "API server, etcd, store, simulation and operator share them"
    )


def mebibytes(count: int) -> str:
    """For people."""
    return f"{count / MEBIBYTE:.0f} MiB"
