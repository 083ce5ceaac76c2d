"""The Grafana dashboard. Its JSON in the chart is written by `python -m charts.dashboard`.

Panels stand here in the order in which they are read; places and ids follow from that. Gauges are aggregated over
whatever labels a scrape adds (instance, pod), so that a line goes on when the operator is restarted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "modelchain/files/dashboards/modelchain.json"
COLUMNS = 24

Object = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHAINS = 'namespace=~"$namespace",chain=~"$chain"'
OPERATOR = "and on (instance, job) modelchain_build_info"  # of all processes, ours

# With a space, or Grafana would take the M for mega.
MACS, SAMPLES_PER_SECOND = "si: MACs", "si: samples/s"
HOURS = "suffix: h"  # Grafana's own unit makes days of them
TIMES = "suffix: x"
RATIO, SECONDS, BYTES, COUNT = "percentunit", "s", "bytes", "none"
REQUESTS_PER_SECOND, PER_SECOND = "reqps", "ops"

WITHOUT_SERIES = "without series of their own"

PHASE_COLOURS = {
    "Refused": "purple",
    "Pending": "light-blue",
    "Queued": "blue",
    "Waiting": "super-light-blue",
    "Running": "green",
    "Retrying": "orange",
    "Suspended": "text",
    "Cached": "semi-dark-green",
    "Complete": "dark-green",
    "Failed": "red",
}


# ---- what is shown


def overview() -> list[Object]:
    return [
        stat(
            "Chains",
            [query(f"sum by (phase) (modelchain_chain_phase{{{CHAINS}}})", "{{phase}}")],
            COUNT,
            "Chains in each phase.",
            width=9,
            overrides=_colours(PHASE_COLOURS),
        ),
        stat(
            "Chains that need attention",
            [
                query(
                    "count(count by (namespace, chain) "
                    f"(modelchain_chain_needs_attention{{{CHAINS}}})) or vector(0)"
                )
            ],
            COUNT,
            "Chains that go on only when somebody does something; which, and why, says the table below.",
            width=4,
            thresholds=[("green", None), ("red", 1)],
        ),
        stat(
            "GPUs at work",
            [query(f"sum(rate(modelchain_chain_gpu_seconds_total{{{CHAINS}}}[$__rate_interval]))")],
            COUNT,
            "GPUs of the jobs that run.",
            width=4,
            decimals=0,
        ),
        stat(
            "Throughput",
            [query(f"sum(modelchain_stage_samples_per_second{{{CHAINS}}}) or vector(0)")],
            SAMPLES_PER_SECOND,
            "Samples a second of all stages that train.",
            width=4,
        ),
        stat(
            "Waiting for a pass",
            [query("sum(modelchain_queue_depth)")],
            COUNT,
            "Chains in the operator's work queue, of all namespaces.",
            width=3,
            thresholds=[("green", None), ("orange", 50)],
        ),
        table(
            "Chains",
            {
                "Phase": query(f"sum by (namespace, chain, phase) (modelchain_chain_phase{{{CHAINS}}})"),
                "Progress": query(_of_chain("modelchain_chain_progress_ratio")),
                "Spent": query(_of_chain("modelchain_chain_spent_macs")),
                "Saved (planned)": query(_of_chain("modelchain_chain_planned_saved_macs")),
                "Speed-up (planned)": query(_of_chain("modelchain_chain_planned_speedup_ratio")),
                "Lower bound": query(_of_chain("modelchain_chain_measured_speedup_is_bound")),
                "Speed-up (measured)": query(_of_chain("modelchain_chain_measured_speedup_ratio")),
                "GPU hours": query(
                    "sum by (namespace, chain) "
                    f"(increase(modelchain_chain_gpu_seconds_total{{{CHAINS}}}[$__range])) / 3600"
                ),
            },
            {
                "Progress": RATIO,
                "Spent": MACS,
                "Saved (planned)": MACS,
                "Speed-up (planned)": TIMES,
                "Lower bound": COUNT,
                "Speed-up (measured)": TIMES,
                "GPU hours": HOURS,
            },
            "Progress is the share of the chain's compute that is done. Spent is what the chain has trained itself, "
            "saved what its finished models alone would cost beyond that as planned, GPU hours those of the time "
            "shown. The speed-up is measured at equal quality where the chain asks for it (spec.baseline.train); it "
            "is a lower bound where a model alone did not get there.",
            labels=["namespace", "chain", "phase"],
            hidden=["Phase"],
            gauges=["Progress"],
            colours=PHASE_COLOURS,
            width=15,
        ),
        table(
            "Needs attention",
            {
                "Reason": query(
                    f"sum by (namespace, chain, reason) (modelchain_chain_needs_attention{{{CHAINS}}})"
                )
            },
            {},
            "`kubectl describe modelchain` says what has to be done.",
            labels=["namespace", "chain", "reason"],
            hidden=["Reason"],
            width=9,
        ),
    ]


def stages() -> list[Object]:
    return [
        lines(
            "Progress of the stages",
            [query(_of_stage("modelchain_stage_progress_ratio"), "{{chain}} / {{stage}}")],
            RATIO,
            "Steps done over all steps of each stage that trains.",
            maximum=1,
        ),
        lines(
            "Throughput",
            [query(_of_stage("modelchain_stage_samples_per_second"), "{{chain}} / {{stage}}")],
            SAMPLES_PER_SECOND,
            "Samples a second, over all processes of a stage.",
        ),
        lines(
            "Stages by phase",
            [
                query(
                    'sum by (phase) (modelchain_chain_stages{namespace=~"$namespace"}) > 0',
                    "{{phase}}",
                )
            ],
            COUNT,
            "Of all chains in the namespaces chosen.",
            stacked=True,
            overrides=_colours(PHASE_COLOURS),
        ),
        lines(
            "Time left",
            [query(_of_stage("modelchain_stage_eta_seconds"), "{{chain}} / {{stage}}")],
            SECONDS,
            "The trainer's estimate to the end of the stage.",
            width=12,
        ),
        lines(
            "Training that no checkpoint holds yet",
            [query(_of_stage("modelchain_stage_unsaved_seconds"), "{{chain}} / {{stage}}")],
            SECONDS,
            "What a failure now would cost. It falls to 0 at each checkpoint.",
            width=12,
        ),
    ]


def learning() -> list[Object]:
    return [
        lines(
            "Loss",
            [query(_loss("total"), "{{chain}} / {{stage}}")],
            COUNT,
            "The total that is minimised: the task's loss and, where there is a teacher, its weighted term.",
        ),
        lines(
            "Distance from the teacher",
            [query(_loss("distillation"), "{{chain}} / {{stage}}")],
            COUNT,
            "The distillation term of the loss: squared distance of the embeddings times its weight, over the batch.",
        ),
        lines(
            "Zero-shot accuracy",
            [query(_of_stage("modelchain_stage_top1_ratio"), "{{chain}} / {{stage}}")],
            RATIO,
            "Top-1 on the first zero-shot set. It stays where it was when the stage was finished.",
        ),
    ]


def costs() -> list[Object]:
    complete = 'and on (namespace, chain) (modelchain_chain_phase{phase="Complete"} == 1)'
    spent, saved = _of_chain("modelchain_chain_spent_macs"), _of_chain("modelchain_chain_planned_saved_macs")
    measured = _of_chain("modelchain_chain_measured_speedup_ratio")
    return [
        stat(
            "GPU hours",
            [query(f"sum(increase(modelchain_chain_gpu_seconds_total{{{CHAINS}}}[$__range])) / 3600")],
            HOURS,
            "GPUs times running time, of the time shown. While no operator runs nobody counts.",
            width=6,
        ),
        stat(
            "Planned saving against training alone",
            [query(f"sum({saved})")],
            MACS,
            "Planned, not measured: what the finished models alone would cost beyond the chains, as `modelchain plan` "
            "counts.",
            width=6,
        ),
        stat(
            "Complete chains: planned speed-up",
            [query(f"sum(({spent} + {saved}) {complete}) / sum({spent} {complete})")],
            TIMES,
            "Planned, not measured: every model of the complete chains alone, over what those chains have cost.",
            width=6,
            decimals=2,
        ),
        stat(
            "Measured speed-up at equal quality",
            [query(measured, "{{chain}}")],
            TIMES,
            "The models alone until they were as good as the chain's, over the chain. A lower bound where "
            "modelchain_chain_measured_speedup_is_bound is 1.",
            width=6,
            decimals=2,
        ),
        lines(
            "GPUs at work",
            [
                query(
                    "sum by (namespace, chain) "
                    f"(rate(modelchain_chain_gpu_seconds_total{{{CHAINS}}}[$__rate_interval]))",
                    "{{namespace}} / {{chain}}",
                )
            ],
            COUNT,
            "GPUs of the jobs that run; the area is GPU time.",
            stacked=True,
        ),
        lines(
            "Compute spent",
            [
                query(spent, "{{namespace}} / {{chain}}"),
                query(
                    _of_chain("modelchain_chain_baseline_spent_macs"),
                    "{{namespace}} / {{chain}}, models alone",
                ),
            ],
            MACS,
            "Of the steps that a chain has trained itself, and of those of its models alone, to compare. What is "
            "trained again after a failure counts once.",
        ),
        lines(
            "Planned saving against training alone, over time",
            [query(saved, "{{namespace}} / {{chain}}")],
            MACS,
            "Planned, not measured. It grows when a stage is finished. A stage found in the store saves all of its "
            "training; one that is trained for longer than it would be alone saves less than nothing.",
            minimum=None,
        ),
    ]


def attempts() -> list[Object]:
    def increase(name: str, labels: str) -> str:
        # Windows that do not overlap, so that what has happened once is shown once.
        return f"sum by ({labels}) (increase({name}[$__interval])) > 0"

    return [
        lines(
            "Attempts",
            [query(increase("modelchain_attempts_total", "outcome, reason"), "{{outcome}}: {{reason}}")],
            COUNT,
            "Attempts that have started or ended, of all namespaces. Interrupted ones (eviction, preemption, a lost "
            "node, suspension) do not count as failures.",
            bars=True,
            overrides=_matching(
                {
                    "failed.*": "red",
                    "interrupted.*": "orange",
                    "succeeded.*": "green",
                    "started.*": "blue",
                }
            ),
        ),
        lines(
            "Stages that have ended",
            [query(increase("modelchain_stages_total", "outcome"), "{{outcome}}")],
            COUNT,
            "Of all namespaces. Cached ones were found in the store.",
            bars=True,
            overrides=_colours({"failed": "red", "cached": "semi-dark-green", "complete": "dark-green"}),
        ),
        table(
            "Unfinished stages",
            {
                "Attempts": query(_of_stage("modelchain_stage_attempts_total")),
                "Failures": query(_of_stage("modelchain_stage_failures")),
                "Retries left": query(_of_stage("modelchain_stage_retries_left", "min")),
            },
            {"Attempts": COUNT, "Failures": COUNT, "Retries left": COUNT},
            "With no retries left, the next failure ends the chain.",
            labels=["namespace", "chain", "stage"],
            hidden=[],
            width=8,
        ),
    ]


def store() -> list[Object]:
    return [
        lines(
            "Requests to stores",
            [
                query(
                    "sum by (operation) (rate(modelchain_store_requests_total[$__rate_interval]))",
                    "{{operation}}",
                )
            ],
            REQUESTS_PER_SECOND,
            "The operator's own; trainers have theirs.",
        ),
        lines(
            "Store errors",
            [query("sum by (reason) (rate(modelchain_store_errors_total[$__rate_interval]))", "{{reason}}")],
            REQUESTS_PER_SECOND,
            "forbidden: keys or rights; unavailable: no answer, or an error of the server.",
            overrides=_colours({"forbidden": "orange", "unavailable": "red", "other": "purple"}),
        ),
        quantiles(
            "Time that stores take to answer",
            "modelchain_store_request_duration_seconds",
            "Of the requests above.",
        ),
    ]


def operator() -> list[Object]:
    return [
        quantiles(
            "Time of a pass",
            "modelchain_reconcile_duration_seconds",
            "A pass looks at one chain and does what has to be done.",
        ),
        quantiles(
            "Time in the reconcile queue",
            "modelchain_queue_lag_seconds",
            "High values mean that the operator does not keep up.",
        ),
        lines(
            "Failed reconciliations",
            [
                query(
                    "sum by (reason) (rate(modelchain_reconcile_errors_total[$__rate_interval])) > 0",
                    "{{reason}}",
                )
            ],
            PER_SECOND,
            "They are repeated. Conflict is harmless: the chain was changed meanwhile.",
        ),
        lines(
            "Requests to the API server",
            [
                query(
                    "sum by (verb) (rate(modelchain_kubernetes_requests_total[$__rate_interval]))", "{{verb}}"
                ),
                query("sum(rate(modelchain_status_writes_total[$__rate_interval]))", "status writes"),
            ],
            REQUESTS_PER_SECOND,
            "Requests that were answered, and how many of them wrote a status.",
        ),
        lines(
            "Reconciliations, and queue depth",
            [
                query(
                    "sum(rate(modelchain_reconcile_duration_seconds_count[$__rate_interval]))",
                    "reconciliations a second",
                ),
                query("sum(modelchain_queue_depth)", "queue depth"),
            ],
            COUNT,
            "Of all namespaces.",
        ),
        lines(
            "Chains by phase",
            [
                query("sum by (phase) (modelchain_chains) > 0", "{{phase}}"),
                query("sum(modelchain_chains_without_series) > 0", WITHOUT_SERIES),
            ],
            COUNT,
            "All that the operator knows, of all namespaces.",
            stacked=True,
            overrides=[
                *_colours(PHASE_COLOURS),
                # They are in a phase as well.
                _override("byName", WITHOUT_SERIES, {"custom.stacking": {"mode": "none"}}),
            ],
        ),
        lines(
            "Memory",
            [query(f"process_resident_memory_bytes {OPERATOR}", "{{instance}}")],
            BYTES,
            "Resident memory of the operator.",
        ),
        lines(
            "Processor",
            [
                query(
                    f"rate(process_cpu_seconds_total[$__rate_interval]) {OPERATOR}",
                    "{{instance}}",
                )
            ],
            COUNT,
            "Processor cores that the operator uses.",
        ),
        lines(
            "Operators, by version",
            [
                query("sum by (version) (modelchain_build_info)", "{{version}}"),
                query("sum(modelchain_leader)", "leaders"),
            ],
            COUNT,
            "Running operators, and how many of them act on chains: one. A gap is a time without any.",
        ),
    ]


ROWS = {
    "Overview": overview,
    "Stages": stages,
    "What is learned": learning,
    "Cost": costs,
    "Attempts": attempts,
    "Store": store,
    "Operator": operator,
}


def dashboard() -> Object:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "modelchain",
        "title": "ModelChain",
        "description": "Chains of models in training, what they cost, and the operator that looks after them.",
        "tags": ["modelchain"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "title": "Runbooks",
                "type": "link",
                "url": "https://modelchain.dev/runbooks/",
                "icon": "doc",
                "targetBlank": True,
            }
        ],
        "annotations": {"list": []},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("namespace", "Namespace", "label_values(modelchain_chain_phase, namespace)"),
                _variable(
                    "chain",
                    "Chain",
                    'label_values(modelchain_chain_phase{namespace=~"$namespace"}, chain)',
                ),
            ]
        },
        "panels": list(_laid_out()),
    }


def text() -> str:
    """The file in the chart."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


# ---- panels

# A series that has ended has no value now, but it has a latest one: a chain that runs no more would still be counted.
_INSTANT = {"instant": True, "range": False}


def query(expression: str, legend: str = "") -> Object:
    """A query of a panel."""
    return {"expr": expression, "legendFormat": legend or "__auto"}


def lines(
    title: str,
    queries: Sequence[Object],
    unit: str,
    description: str,
    *,
    width: int = 8,
    stacked: bool = False,
    bars: bool = False,
    minimum: float | None = 0,
    maximum: float | None = None,
    overrides: Sequence[Object] = (),
) -> Object:
    """Values over time."""
    custom: Object = {
        "lineWidth": 1,
        "fillOpacity": 80 if bars else 30 if stacked else 5,
        "showPoints": "never",
        "drawStyle": "bars" if bars else "line",
        "stacking": {"mode": "normal" if stacked or bars else "none"},
    }
    defaults: Object = {"unit": unit, "custom": custom, "color": {"mode": "palette-classic"}}
    defaults |= {name: value for name, value in (("min", minimum), ("max", maximum)) if value is not None}
    return _panel(
        "timeseries",
        title,
        queries,
        description,
        width,
        8,
        {"defaults": defaults, "overrides": [*overrides]},
        {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        **({"interval": "2m"} if bars else {}),  # at least two scrapes in each window
    )


def quantiles(title: str, histogram: str, description: str) -> Object:
    """Quantiles of a histogram of seconds, over time."""
    rates = f"sum by (le) (rate({histogram}_bucket[$__rate_interval]))"
    return lines(
        title,
        [
            query(f"histogram_quantile({quantile}, {rates})", f"p{round(quantile * 100)}")
            for quantile in (0.5, 0.9, 0.99)
        ],
        SECONDS,
        description,
    )


def stat(
    title: str,
    queries: Sequence[Object],
    unit: str,
    description: str,
    *,
    width: int,
    decimals: int | None = None,
    thresholds: Sequence[tuple[str, float | None]] = (("text", None),),
    overrides: Sequence[Object] = (),
) -> Object:
    """Values of now, large."""
    defaults: Object = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": colour, "value": value} for colour, value in thresholds],
        },
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return _panel(
        "stat",
        title,
        [one | _INSTANT for one in queries],
        description,
        width,
        4,
        {"defaults": defaults, "overrides": [*overrides]},
        {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
            "textMode": "auto",
            "justifyMode": "auto",
            "orientation": "auto",
        },
    )


def table(
    title: str,
    columns: dict[str, Object],
    units: dict[str, str],
    description: str,
    *,
    labels: Sequence[str],
    hidden: Sequence[str],
    width: int,
    gauges: Sequence[str] = (),
    colours: dict[str, str] | None = None,
) -> Object:
    """Values of now, a row for each set of labels: a column a label, then a column a query, less the hidden ones."""
    letters = {column: chr(ord("A") + index) for index, column in enumerate(columns)}
    # Values of a lone query are in `Value`, those of several in `Value #<its letter>`.
    fields = {
        column: f"Value #{letter}" if len(columns) > 1 else "Value" for column, letter in letters.items()
    }
    overrides = [_override("byName", column, {"unit": unit}) for column, unit in units.items()]
    overrides += [
        _override(
            "byName",
            column,
            {
                "custom.cellOptions": {"type": "gauge", "mode": "basic"},
                "color": {"mode": "fixed", "fixedColor": "blue"},
                "min": 0,
                "max": 1,
            },
        )
        for column in gauges
    ]
    if colours is not None:
        mappings = [
            {"type": "value", "options": {name: {"color": colour, "index": index}}}
            for index, (name, colour) in enumerate(colours.items())
        ]
        overrides.append(
            _override("byName", "Phase", {"mappings": mappings, "custom.cellOptions": {"type": "color-text"}})
        )
    # A value's name has no letter either if the other queries have found nothing.
    unwanted = ["Value", *(fields[column] for column in hidden)] if hidden else []
    shown = [*labels, *(fields[column] for column in columns if column not in hidden)]
    names = {label: label.capitalize() for label in labels} | {
        fields[column]: column for column in columns if column not in hidden
    }
    return _panel(
        "table",
        title,
        [one | _INSTANT | {"format": "table"} for one in columns.values()],
        description,
        width,
        8,
        {"defaults": {"unit": COUNT, "custom": {"align": "left"}}, "overrides": overrides},
        {"showHeader": True, "cellHeight": "sm"},
        transformations=[
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": dict.fromkeys(("Time", *unwanted), True),
                    "indexByName": {name: index for index, name in enumerate(shown)},
                    "renameByName": names,
                },
            },
        ],
    )


def _panel(
    kind: str,
    title: str,
    queries: Sequence[Object],
    description: str,
    width: int,
    height: int,
    field_config: Object,
    options: Object,
    **more: object,
) -> Object:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "editorMode": "code", "range": True, **one}
        for index, one in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": width, "h": height},
        "targets": targets,
        "fieldConfig": field_config,
        "options": options,
        **more,
    }


def _laid_out() -> Iterator[Object]:
    """Rows, and below each its panels from left to right, line by line."""
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "type": "row",
            "title": title,
            "id": number,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        }
        top += 1
        left, height = 0, 0
        for panel in panels():
            place = panel["gridPos"]
            if left + place["w"] > COLUMNS:
                left, top, height = 0, top + height, 0
            number += 1
            yield panel | {"id": number, "gridPos": {"x": left, "y": top, **place}}
            left, height = left + place["w"], max(height, place["h"])
        top += height


def _variable(name: str, label: str, definition: str) -> Object:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": definition,
        "query": {"qryType": 1, "query": definition, "refId": name},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _of_chain(metric: str) -> str:
    return f"max by (namespace, chain) ({metric}{{{CHAINS}}})"


def _loss(term: str) -> str:
    return f'max by (namespace, chain, stage) (modelchain_stage_loss{{{CHAINS},term="{term}"}})'


def _of_stage(metric: str, operation: str = "max") -> str:
    return f"{operation} by (namespace, chain, stage) ({metric}{{{CHAINS}}})"


def _colours(colours: dict[str, str]) -> list[Object]:
    return [
        _override("byName", name, {"color": {"mode": "fixed", "fixedColor": colour}})
        for name, colour in colours.items()
    ]


def _matching(colours: dict[str, str]) -> list[Object]:
    return [
        _override("byRegexp", f"/{pattern}/", {"color": {"mode": "fixed", "fixedColor": colour}})
        for pattern, colour in colours.items()
    ]


def _override(matcher: str, name: str, properties: Object) -> Object:
    return {
        "matcher": {"id": matcher, "options": name},
        "properties": [{"id": id_, "value": value} for id_, value in properties.items()],
    }


if __name__ == "__main__":
    PATH.write_text(text())
