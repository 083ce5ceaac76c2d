"""Growth: a predecessor's weights become the first weights of a larger model.

`plan_expansion` says what a growth keeps, and refuses what cannot grow; `expand` does it, one tensor at a
time, by what its family's layout says of its axes. `spaces` keeps the function, `paper` copies leading slices as the
CoM-PT paper does, `depth` says where new blocks stand, `resize` fits positions and patches, `moments` grows the
optimizer's state. Pure functions of tensors: may import modelchain, torch and `model`.
"""

from modelchain_trainer.expansion.embedding import embedding_map
from modelchain_trainer.expansion.expand import expand
from modelchain_trainer.expansion.moments import expand_moments
from modelchain_trainer.expansion.plan import Change, ExpansionPlan, Fidelity, plan_expansion

__all__ = [
    "Change",
    "ExpansionPlan",
    "Fidelity",
    "embedding_map",
    "expand",
    "expand_moments",
    "plan_expansion",
]
