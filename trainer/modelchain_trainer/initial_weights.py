"""What a stage's model starts from: nothing, its predecessor, or weights from elsewhere."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from modelchain.artifacts import (
    CHECKPOINT_MODEL,
    CHECKPOINT_OPTIMIZER,
    DIGEST_LENGTH,
    Manifest,
)
from modelchain.commit import download_verified, verify_stage
from modelchain.errors import ConfigurationError, MissingInputError, UserDataError
from modelchain.families import AnyConfig, family_of
from modelchain.families.family import TokenModelConfig
from modelchain.resolved import ResolvedStage, StageReference
from modelchain.spec import WEIGHTS_SUFFIXES, InitialWeights, OptimizerState, WeightsSpec
from modelchain.store import (
    Forbidden,
    MissingBucket,
    NotFound,
    Store,
    StoreError,
    StoreUnavailable,
    open_location,
    split_uri,
)
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.data.published_tokenizer import TOKENIZER, check_same_tokenizer
from modelchain_trainer.expansion import expand, expand_moments
from modelchain_trainer.model import families as model_families
from modelchain_trainer.model.build import build_model, model_from
from modelchain_trainer.model.checkpoint_file import SAFETENSORS, load_checkpoint_file
from modelchain_trainer.model.families import AnyModel
from modelchain_trainer.model.weights import load_tensors, load_weights

logger = logging.getLogger(__name__)

R = TypeVar("R")
Moments = dict[str, Tensor]  # as `TrainStep.load_moments` takes them


def first_weights(attempt: Attempt, teacher: AnyModel | None) -> tuple[AnyModel, Moments | None]:
    """The stage's model at step 0, and the optimizer's moments where they are carried over; on the CPU.

    `teacher` is used, and left as it is, where the model grows out of that very stage.
    """
    stage = attempt.stage
    attempt.telemetry.phase("Expanding")
    if stage.predecessor is not None:
        logger.info("growing %s out of %s", stage.name, stage.predecessor.name)
        if stage.expansion.weights is InitialWeights.TRUNK:
            return _grown_trunk(attempt, stage.predecessor)
        if teacher is None or stage.teacher != stage.predecessor:
            teacher = published_model(attempt, stage.predecessor)
        return _expanded(stage, teacher), None
    if stage.from_weights is not None:
        return _from_elsewhere(attempt, stage.from_weights), None
    return build_model(stage.model_config_, seed=stage.training.seed), None


def published_model(attempt: Attempt, other: StageReference) -> AnyModel:
    """The finished model of another stage, on the CPU, every byte verified by its manifest.

    Raises MissingInputError if that stage is not complete, UserDataError if its files are not what its
    manifest says.
    """
    manifest = _manifest_of(attempt, other)
    folder = attempt.scratch / f"published-{other.digest[:DIGEST_LENGTH]}"
    folder.mkdir()
    attempt_path = f"attempts/{manifest.attempt}"
    family = family_of(other.model_config_)
    for name in (family.weights, family.weights_config):
        _download(attempt, other, manifest, f"{attempt_path}/{name}", folder / name)
    state, config = load_weights(folder, family)
    shutil.rmtree(folder)
    if config != other.model_config_:
        place = attempt.store.uri_of(other.folder)
        raise UserDataError(f"{place}: its weights are not the model of stage {other.name}")
    return model_from(state, config)


def _grown_trunk(attempt: Attempt, predecessor: StageReference) -> tuple[AnyModel, Moments | None]:
    """The model grown out of the predecessor's weights before its decay, and the moments if the stage wants them."""
    stage = attempt.stage
    manifest = _manifest_of(attempt, predecessor)
    if manifest.trunk is None:
        raise UserDataError(
            f"{attempt.store.uri_of(predecessor.folder)}: stage {predecessor.name} has no trunk; "
            "give it training.schedule.type: WarmupStableDecay, or write expansion.weights: Published"
        )
    before, after = predecessor.model_config_, stage.model_config_

    def load(name: str) -> dict[str, Tensor]:
        path = attempt.scratch / f"trunk-{name}"
        _download(attempt, predecessor, manifest, f"{manifest.trunk}/{name}", path)
        tensors = load_tensors(path)
        path.unlink()
        return tensors

    model = _expanded(stage, model_from(load(CHECKPOINT_MODEL), before))
    if stage.expansion.optimizer_state is OptimizerState.RESET:
        return model, None
    optimizer = load(CHECKPOINT_OPTIMIZER)
    moments = {"optimizer.steps": optimizer["optimizer.steps"]}
    for kind, power in (("mean", 1), ("square", 2)):
        prefix = f"optimizer.{kind}."
        small = {n.removeprefix(prefix): t for n, t in optimizer.items() if n.startswith(prefix)}
        grown = expand_moments(small, before, after, stage.expansion, power=power)
        moments |= {f"{prefix}{name}": tensor for name, tensor in grown.items()}
    return model, moments


def _manifest_of(attempt: Attempt, other: StageReference) -> Manifest:
    store = attempt.store
    manifest = attempt.retry_policy.call(lambda: verify_stage(store, other.folder, other.digest))
    if manifest is None:
        raise MissingInputError(
            f"stage {attempt.stage.name} needs the weights of {other.name}, which is not complete at "
            f"{store.uri_of(other.folder)}; train it first"
        )
    return manifest


def _download(attempt: Attempt, other: StageReference, manifest: Manifest, name: str, path: Path) -> None:
    entry = next((entry for entry in manifest.files if entry.path == name), None)
    if entry is None:
        raise UserDataError(f"{attempt.store.uri_of(other.folder)}: its manifest lists no {name}")
    attempt.retry_policy.call(lambda: download_verified(attempt.store, other.folder, entry, path))
    attempt.telemetry.advance()


@dataclass(frozen=True)
class _Files:
    """Names of weights in a folder, and of what lies beside them."""

    weights: str
    config: str
    preprocessing: str | None = None


def _known_files(config: AnyConfig) -> list[_Files]:
    """Those that can be read, the first that is there being taken: safetensors before pickled tensors."""
    own, other = family_of(config), model_families.family_of(config).other_files
    known = [_Files(own.weights, own.weights_config)]
    if other is not None:
        known.append(_Files(other.weights, other.config, other.preprocessing))
    known.append(_Files(own.pickled_weights, own.weights_config))
    if other is not None:
        known.append(_Files(other.pickled_weights, other.config, other.preprocessing))
    return known


def _from_elsewhere(attempt: Attempt, weights: WeightsSpec) -> AnyModel:
    """The stage's model, grown out of weights that anybody may have written."""
    stage, folder = attempt.stage, attempt.scratch / "weights"
    folder.mkdir()
    one_file = weights.uri.endswith(WEIGHTS_SUFFIXES)
    location, name = split_uri(weights.uri) if one_file else (weights.uri, "")
    store = open_location(location, stage.store)

    def download(name: str) -> str:
        sha256 = attempt.retry_policy.call(lambda: store.download(name, folder / name))
        attempt.telemetry.advance()
        return sha256

    if one_file:
        sha256, known = download(name), _known_files(stage.model_config_)
        beside = {name for files in known for name in (files.config, files.preprocessing)}
    else:
        files, sha256 = _first_there(download, _known_files(stage.model_config_), weights.uri)
        download(files.config)
        name, beside = files.weights, {files.preprocessing}
    for other in sorted(other for other in beside if other is not None):
        found = _if_there(partial(download, other), one_file=one_file)
        if one_file and found is not None and _is_page((folder / other).read_bytes(), store.uri_of(other)):
            (folder / other).unlink()
    _check_sha256(sha256, weights, store.uri_of(name))
    if isinstance(stage.model_config_, TokenModelConfig):
        _check_tokenizer(attempt, store, one_file=one_file)
    if one_file or not name.endswith(SAFETENSORS):
        state, config = load_checkpoint_file(folder / name, stage.model_config_)
    else:
        state, config = load_weights(folder, family_of(stage.model_config_))
    shutil.rmtree(folder)
    try:
        return _expanded(stage, model_from(state, config))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{store.uri_of(name)}: stage {stage.name} can't start from these weights (fromWeights): {error}"
        ) from None


def _first_there(download: Callable[[str], str], known: Sequence[_Files], uri: str) -> tuple[_Files, str]:
    """The files whose weights are there, and the SHA-256 of these."""
    refused: Forbidden | None = None
    for files in known:
        try:
            return files, download(files.weights)
        except MissingBucket:
            raise
        except NotFound:
            continue
        except Forbidden as error:  # who may not list a bucket is refused what is not there
            refused = refused or error
    names = list(dict.fromkeys(files.weights for files in known))
    remedy = f"give a folder with one of them, or name the file itself ({', '.join(WEIGHTS_SUFFIXES)})"
    if refused is not None:
        raise Forbidden(
            f"{uri}: none of {', '.join(names)} is there or may be read ({refused}); allow it, or {remedy}"
        )
    raise MissingInputError(f"{uri}: holds no {', '.join(names[:-1])} or {names[-1]}; {remedy}")


def _if_there(read: Callable[[], R], *, one_file: bool) -> R | None:
    """What is read, which may lie beside weights; None where it does not, or may not be read.

    Beside `one_file` of a web server, which answers as it likes for what is not there, every answer counts.
    """
    try:
        return read()
    except NotFound:
        return None
    except StoreUnavailable:
        raise
    except StoreError as error:
        if not one_file and not isinstance(error, Forbidden):
            raise
        logger.warning("%s; it is taken for absent, and the weights are not checked by it", error)
        return None


def _is_page(content: bytes, uri: str) -> bool:
    """Whether a server has answered with a page for a file that is not there."""
    page = content.lstrip().startswith(b"<")
    if page:
        logger.warning("%s: is a page, and no JSON; it is taken for absent", uri)
    return page


def _check_tokenizer(attempt: Attempt, store: Store, *, one_file: bool) -> None:
    """Tokens mean the same to the weights and to the stage, where a tokenizer lies beside them."""
    found = _if_there(lambda: attempt.retry_policy.call(lambda: store.get(TOKENIZER)), one_file=one_file)
    if found is None or (one_file and _is_page(found[0], store.uri_of(TOKENIZER))):
        return
    check_same_tokenizer(found[0], attempt.stage.data, store.uri_of(TOKENIZER))


def _check_sha256(found: str, weights: WeightsSpec, uri: str) -> None:
    if found != weights.sha256:
        raise UserDataError(
            f"{uri}: its sha256 is {found}, not the {weights.sha256} of fromWeights; the file is damaged or another one"
        )


def _expanded(stage: ResolvedStage, small: AnyModel) -> AnyModel:
    large_config = stage.model_config_
    state = expand(small.state_dict(), small.config, large_config, stage.expansion, seed=stage.training.seed)
    return model_from(state, large_config)
