"""What a stage's model starts from: nothing, its predecessor, or weights from elsewhere."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from modelchain.artifacts import OPEN_CLIP_CONFIG, WEIGHTS
from modelchain.commit import download_verified, verify_stage
from modelchain.errors import MissingInputError, UserDataError
from modelchain.resolved import ResolvedStage
from modelchain.spec import WeightsSpec
from modelchain.store import open_location
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.expansion import expand
from modelchain_trainer.model.build import build_model, model_from
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.model.weights import load_weights

logger = logging.getLogger(__name__)


def grown_model(attempt: Attempt, predecessor: Clip | None) -> Clip:
    """The stage's model at step 0, on the CPU. `predecessor` is left as it is."""
    stage = attempt.stage
    attempt.telemetry.phase("Expanding")
    if predecessor is not None:
        logger.info("growing %s out of %s", stage.name, stage.predecessor and stage.predecessor.name)
        return _expanded(stage, predecessor)
    if stage.from_weights is not None:
        return _expanded(stage, _foreign_model(attempt, stage.from_weights))
    return build_model(stage.model_config_, seed=stage.training.seed)


def predecessor_model(attempt: Attempt) -> Clip:
    """The finished model of the stage's predecessor, on the CPU, every byte verified by its manifest.

    Raises MissingInputError if that stage is not complete, UserDataError if its files are not what its
    manifest says.
    """
    predecessor = attempt.stage.predecessor
    assert predecessor is not None
    store, patience = attempt.store, attempt.patience
    manifest = patience.attempt(lambda: verify_stage(store, predecessor.folder, predecessor.digest))
    if manifest is None:
        raise MissingInputError(
            f"stage {attempt.stage.name} grows out of {predecessor.name}, which is not complete at "
            f"{store.uri_of(predecessor.folder)}; train it first"
        )
    folder = attempt.scratch / "predecessor"
    folder.mkdir()
    entries = {Path(entry.path).name: entry for entry in manifest.files}
    for name in (WEIGHTS, OPEN_CLIP_CONFIG):
        if name not in entries:
            raise UserDataError(f"{store.uri_of(predecessor.folder)}: its manifest lists no {name}")
        target = folder / name
        patience.attempt(
            lambda entry=entries[name], path=target: download_verified(store, predecessor.folder, entry, path)
        )
        attempt.telemetry.advance()
    state, config = load_weights(folder)
    shutil.rmtree(folder)
    if config != predecessor.model_config_:
        raise UserDataError(
            f"{store.uri_of(predecessor.folder)}: its weights are not the model of stage {predecessor.name}"
        )
    return model_from(state, config)


def _foreign_model(attempt: Attempt, weights: WeightsSpec) -> Clip:
    folder = attempt.scratch / "weights"
    folder.mkdir()
    store = open_location(weights.uri, attempt.stage.store)
    sha256 = attempt.patience.attempt(lambda: store.download(WEIGHTS, folder / WEIGHTS))
    attempt.telemetry.advance()
    attempt.patience.attempt(lambda: store.download(OPEN_CLIP_CONFIG, folder / OPEN_CLIP_CONFIG))
    attempt.telemetry.advance()
    if sha256 != weights.sha256:
        raise UserDataError(
            f"{store.uri_of(WEIGHTS)}: its sha256 is {sha256}, not the {weights.sha256} of fromWeights; "
            "the file is damaged or another one"
        )
    state, config = load_weights(folder)
    shutil.rmtree(folder)
    return model_from(state, config)


def _expanded(stage: ResolvedStage, small: Clip) -> Clip:
    large_config = stage.model_config_
    if small.config == large_config:
        return model_from({name: tensor.clone() for name, tensor in small.state_dict().items()}, large_config)
    state = expand(small.state_dict(), small.config, large_config, stage.expansion, seed=stage.training.seed)
    return model_from(state, large_config)
