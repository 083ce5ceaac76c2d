"""What models trained alone show about a chain: read from the store, measured by `modelchain.acceleration`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelchain.acceleration import compute_to_reach, envelope
from modelchain.artifacts import EvaluationLine, Manifest
from modelchain.commit import read_manifest
from modelchain.errors import UserDataError
from modelchain.evaluations import higher_is_better
from modelchain.reconcile.observation import Unmeasurable
from modelchain.report.reading import read_history
from modelchain.resolved import ResolvedChain, needed_for
from modelchain.status import Measurement, ModelMeasured
from modelchain.store import Store


@dataclass(frozen=True)
class Trained:
    """A finished stage: what it ended with, and its evaluations on the way there."""

    manifest: Manifest
    evaluations: tuple[EvaluationLine, ...] = ()

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(macs, value) of each evaluation by that metric, the final one included."""
        ended = [(self.manifest.macs, self.manifest.metrics)]
        lines = [(line.macs, line.metrics) for line in self.evaluations]
        return [(macs, metrics[metric]) for macs, metrics in (*lines, *ended) if metric in metrics]


def measure(chain: ResolvedChain, trained: Mapping[str, Trained]) -> Measurement | Unmeasurable:
    """Acceleration at equal quality, of the models that were trained alone. `trained`: by name, those runs and the
    chain's stages, each of which must be there.
    """
    baseline = chain.baseline
    assert baseline is not None, "the chain asks for no comparison"
    metric = baseline.metric
    models: list[ModelMeasured] = []
    for name in baseline.stages:
        target = trained[name].manifest.metrics.get(metric)
        if target is None:
            return Unmeasurable(f"stage {name} ended without {metric}")
        runs = [trained[run.run] for run in baseline.runs if run.stage == name]
        model = measure_model(name, target, runs, metric)
        if model is None:
            return Unmeasurable(f"{name} was not measured by {metric} where it was trained alone")
        models.append(model)
    macs = sum(trained[stage.name].manifest.macs for stage in needed_for(baseline.stages, chain.stages))
    if macs < 1:
        return Unmeasurable("the chain's stages took no compute")
    return Measurement(metric=metric, chain_macs=macs, models=tuple(models))


def measure_model(name: str, target: float, runs: Sequence[Trained], metric: str) -> ModelMeasured | None:
    """What a model takes alone to come to `target`, over all runs of it; None if none was evaluated by the metric."""
    curves = [curve for run in runs if (curve := run.curve(metric))]
    if not curves:
        return None
    higher = higher_is_better(metric)
    reached = compute_to_reach(envelope(curves, higher_is_better=higher), target, higher_is_better=higher)
    return ModelMeasured(name=name, target=target, macs=reached.macs, reached=reached.reached)


def read_measurement(store: Store, chain: ResolvedChain) -> Measurement | Unmeasurable:
    """The same, read from the store. Raises what the store raises where it can't be asked."""
    assert chain.baseline is not None, "the chain asks for no comparison"
    runs = {run.run for run in chain.baseline.runs}
    trained: dict[str, Trained] = {}
    for stage in chain.all_stages:
        try:
            manifest = read_manifest(store, stage.folder, stage.digest)
        except UserDataError as error:
            return Unmeasurable(f"stage {stage.name} can't be read: {error}")
        if manifest is None:
            return Unmeasurable(f"{store.uri_of(stage.folder)} has no manifest any more")
        evaluations = read_history(store, stage.folder, manifest).evaluations if stage.name in runs else ()
        trained[stage.name] = Trained(manifest, evaluations)
    return measure(chain, trained)
