"""How long slots of a quota stay free, from the events of a watch."""

from __future__ import annotations

from typing import Any

from benchmarks.quota_slots import QUEUE_ANNOTATION, Slots


def pod(name: str, phase: str = "Running", *, ending: bool = False) -> dict[str, Any]:
    deleted = {"deletionTimestamp": "2026-11-26T09:00:00Z"} if ending else {}
    metadata = {"name": name, "uid": name, "annotations": {QUEUE_ANNOTATION: "red"}, **deleted}
    return {"metadata": metadata, "status": {"phase": phase}}


def test_a_slot_is_free_from_the_end_of_a_pod_to_the_making_of_the_next() -> None:
    slots = Slots(["red"], quota=1)
    assert slots.show("ADDED", pod("one"), 0.0) == "made"
    assert slots.show("MODIFIED", pod("one", "Succeeded"), 5.0) == "ended"
    slots.show("ADDED", pod("two"), 7.0)
    assert slots.waits == [(7.0, 2.0)]
    assert (slots.most, slots.most_with_ending, slots.preempted) == (1, 1, set())


def test_a_slot_that_is_given_away_while_its_pod_ends_was_never_free() -> None:
    """Or every later wait would be counted from the end of a pod that somebody had followed already."""
    slots = Slots(["red"], quota=1)
    slots.show("ADDED", pod("one"), 0.0)
    slots.show("MODIFIED", pod("one", ending=True), 4.0)
    slots.show("ADDED", pod("two"), 5.0)
    slots.show("DELETED", pod("one", "Failed", ending=True), 6.0)
    slots.show("MODIFIED", pod("two", "Succeeded"), 50.0)
    slots.show("ADDED", pod("three"), 51.0)
    assert slots.waits == [(51.0, 1.0)]
    assert (slots.most, slots.most_with_ending, slots.preempted) == (1, 2, {"one"})
