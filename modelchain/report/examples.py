"""Example predictions: the last model's answers for a picture, beside the first model's."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from modelchain.report.data import ChainArtifacts
from modelchain.report.metrics import Example


@dataclass(frozen=True)
class Answer:
    """A model's answer for an example."""

    stage: int
    model: str
    right: bool
    best: str
    probability: float
    others: str


@dataclass(frozen=True)
class ExampleCard:
    """An example with the answers of the first and of the last model."""

    source: str  # data: URI
    label: str
    answers: tuple[Answer, ...]


def example_stages(chain: ChainArtifacts) -> list[int]:
    """The first and the last stage that have examples (of the same set)."""
    having = [i for i, stage in enumerate(chain.stages) if stage.examples]
    if not having:
        return []
    last = having[-1]
    same = [i for i in having if chain.stages[i].example_set == chain.stages[last].example_set]
    return sorted({same[0], last})


def example_cards(chain: ChainArtifacts) -> list[ExampleCard]:
    """The examples of the last stage, with the first one's answer to the same picture."""
    places = example_stages(chain)
    if not places:
        return []
    last = places[-1]
    others = [(i, {(e.picture, e.label): e for e in chain.stages[i].examples}) for i in places[:-1]]
    cards: list[ExampleCard] = []
    for example in chain.stages[last].examples:
        pairs = [(i, known.get((example.picture, example.label))) for i, known in others] + [(last, example)]
        source = f"data:{example.media_type};base64,{base64.b64encode(example.picture).decode()}"
        answers = tuple(_answer(chain, i, found) for i, found in pairs if found is not None)
        cards.append(ExampleCard(source, example.label, answers))
    return cards


def _answer(chain: ChainArtifacts, i: int, example: Example) -> Answer:
    (best, probability), *rest = example.top
    others = ", ".join(f"{name} {100 * share:.0f} %" for name, share in rest)
    return Answer(i, chain.stages[i].model, example.right, best, probability, others)
