"""Reading a chain's artifacts out of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelchain.artifacts import MANIFEST, STAGE, chain_key
from modelchain.errors import MissingInputError, UserDataError
from modelchain.report.data import stage_phase
from modelchain.report.reading import read_chain, read_recorded_chain
from modelchain.resolved import ResolvedChain
from modelchain.store.folder import FolderStore
from tests.modelchain.report.made_up_chain import Training, document, resolved, train


@pytest.fixture
def chain(tmp_path: Path) -> ResolvedChain:
    return resolved(document(tmp_path / "store"))


def test_a_finished_chain_is_read_whole(chain: ResolvedChain) -> None:
    found = read_chain(train(chain, Training(killed={"vit-s": 2})), chain)
    assert found.complete
    assert found.phase == "Complete"
    assert found.notes == ()
    assert [stage.name for stage in found.stages] == ["vit-t", "vit-s", "vit-m"]
    for stage, asked in zip(found.stages, chain.stages, strict=True):
        assert stage.resolved == asked
        assert stage.steps == asked.training.steps
        assert stage.metrics.evaluations[0].step == 0
        assert stage.metrics.evaluations[-1].step == asked.training.steps
        assert len(stage.examples) == 24
    assert [len(stage.attempts) for stage in found.stages] == [1, 3, 1]
    steps = [line.step for line in found.stages[1].metrics.training]
    assert steps == sorted(set(steps)), "killed attempts must not show up twice"


def test_the_store_alone_gives_the_same_as_the_file(chain: ResolvedChain) -> None:
    store = train(chain, Training())
    by_file, by_name = read_chain(store, chain), read_recorded_chain(store, "default", "digits")
    assert by_name == by_file
    assert by_name.baseline_epochs == 24


def test_a_chain_in_progress_shows_what_its_running_stage_has_done(chain: ResolvedChain) -> None:
    store = train(chain, Training(until={"vit-s": 0.5, "vit-m": 0}))
    found = read_recorded_chain(store, "default", "digits")
    assert found.phase == "Running"
    assert [stage_phase(stage) for stage in found.stages] == ["Complete", "Running", "Waiting"]
    half = chain.stages[1].training.steps // 2
    running, waiting = found.stages[1:]
    assert running.steps == half
    assert running.samples == 100 * half
    assert running.macs is not None
    assert running.final_metrics == running.metrics.evaluations[-1].metrics
    assert (waiting.resolved, waiting.started, waiting.macs, waiting.steps) == (None, False, None, None)


def test_a_chain_of_which_nothing_has_started_is_an_error_that_says_what_to_do(chain: ResolvedChain) -> None:
    store = FolderStore(Path(chain.store.uri))
    with pytest.raises(MissingInputError, match="modelchain run") as error:
        read_chain(store, chain)
    assert error.value.exit_code == 66
    assert "\n" not in str(error.value)


def test_a_file_edited_since_its_chain_ran_says_how_to_report_on_what_ran(chain: ResolvedChain) -> None:
    store = train(chain, Training())
    edited = document(Path(chain.store.uri))
    edited["spec"]["training"]["seed"] = 7  # type: ignore[index]
    with pytest.raises(
        MissingInputError, match=rf"other settings: `modelchain report --store {store.uri} default/digits`"
    ):
        read_chain(store, resolved(edited))


def test_an_unknown_chain_names_those_that_the_store_knows(chain: ResolvedChain) -> None:
    store = train(chain, Training())
    with pytest.raises(MissingInputError, match=r"no such chain; the store knows default/digits$"):
        read_recorded_chain(store, "default", "digit")
    with pytest.raises(MissingInputError, match="the store knows no chains"):
        read_recorded_chain(FolderStore(Path(chain.store.uri) / "elsewhere"), "default", "digits")


def test_a_damaged_record_is_named(chain: ResolvedChain) -> None:
    store = train(chain, Training())
    store.put(chain_key("default", "digits"), b'{"chain": "default/digits"}')
    with pytest.raises(UserDataError, match=r"chains/default/digits\.json: this is no record of a chain"):
        read_recorded_chain(store, "default", "digits")


def test_what_is_damaged_is_left_out_and_named(chain: ResolvedChain) -> None:
    store = train(chain, Training())
    folder = chain.stages[1].folder
    attempt = f"{folder}/attempts/uid-1-beef"
    store.put(f"{attempt}/predictions.json", b"{")
    store.put(f"{attempt}/metrics-{0:010d}.jsonl", b"not JSON\n")
    store.put(f"{folder}/{STAGE}", b"[]")
    found = read_recorded_chain(store, "default", "digits")
    assert found.complete
    assert (found.stages[1].examples, found.stages[1].resolved) == ((), None)
    assert len(found.stages[1].metrics.evaluations) > 1
    text = "\n".join(found.notes)
    assert "predictions.json can't be read" in text
    assert "1 lines of metrics can't be read" in text
    assert f"{STAGE} can't be read" in text


def test_a_manifest_of_another_stage_does_not_make_a_stage_complete(chain: ResolvedChain) -> None:
    store = train(chain, Training())
    store.put(f"{chain.stages[2].folder}/{MANIFEST}", store.get(f"{chain.stages[1].folder}/{MANIFEST}")[0])
    found = read_chain(store, chain)
    assert not found.stages[2].complete
    assert any("manifest from another stage" in note for note in found.notes)


def test_a_stage_whose_weights_are_gone_keeps_its_figures_and_says_so(chain: ResolvedChain) -> None:
    store = train(chain, Training())
    stage = read_chain(store, chain).stages[2]
    assert stage.manifest is not None
    store.delete([f"{chain.stages[2].folder}/{stage.manifest.weights}"])
    found = read_chain(store, chain)
    assert found.stages[2].final_metrics == stage.final_metrics
    assert any("is missing" in note for note in found.notes)


def test_missing_metrics_files_leave_the_manifest_and_a_note(chain: ResolvedChain) -> None:
    found = read_chain(train(chain, Training(metrics=False)), chain)
    assert found.complete
    assert all(stage.lines == () and stage.macs for stage in found.stages)
    assert len(found.notes) == 3


def test_stage_json_of_another_chain_is_read_under_the_names_of_this_one(chain: ResolvedChain) -> None:
    store = train(chain, Training())
    key = f"{chain.stages[1].folder}/{STAGE}"
    store.put(key, store.get(key)[0].replace(b'"name":"vit-s"', b'"name":"theirs"'))
    resolved_stage = read_recorded_chain(store, "default", "digits").stages[1].resolved
    assert resolved_stage is not None
    assert resolved_stage.name == "vit-s"
