"""Where the blocks of a deeper tower come from.

Under `Identity` and `Interleave`, block j of the large tower is made from block j*l // L of the small one (l and
L blocks). So each block is followed by its own new copies, which are spread evenly: 12 -> 24 puts one behind
every block, 12 -> 14 behind blocks 0 and 6. For a doubling this is also the order of the CoM-PT paper (block l
becomes 2l and 2l+1). Under `Stack`, block j is made from block j mod l: the whole tower is repeated, as in
G_stack (arXiv 2405.15319).

A copy keeps its source's readers (norms, q, k, v, c_fc). Under `Identity` its writers (out_proj, c_proj) are
zero: the block adds nothing at first, and they receive gradient from the first step, everything else from the
second (as in LEMON, arXiv 2310.07999, and bert2BERT's successors). Otherwise they are copied too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelchain.spec import DepthExpansion, ModelConfig

_BLOCK = re.compile(r"(?P<tower>(visual\.)?transformer\.resblocks\.)(?P<number>\d+)\.(?P<leaf>.+)")
_WRITERS = frozenset({"attn.out_proj.weight", "attn.out_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"})


@dataclass(frozen=True)
class Source:
    """Which parameter of the small model a parameter of the large one is made from."""

    name: str
    leaf: str  # the name within its block, or within its tower
    vision: bool
    new_block: bool  # a block that the small model does not have
    silent: bool = False  # a new block that writes nothing at first

    @property
    def writes(self) -> bool:
        """Whether it is what its block adds to the residual stream."""
        return self.leaf in _WRITERS


def source_of(name: str, small: ModelConfig, large: ModelConfig, depth: DepthExpansion) -> Source:
    """The source of the large model's parameter `name`."""
    vision = name.startswith("visual.")
    match = _BLOCK.fullmatch(name)
    if match is None:
        return Source(name, name.removeprefix("visual."), vision, new_block=False)
    before = (small.vision if vision else small.text).layers
    after = (large.vision if vision else large.text).layers
    number = int(match["number"])
    if depth is DepthExpansion.STACK:
        origin, new_block = number % before, number >= before
    else:
        origin = number * before // after
        new_block = number > 0 and (number - 1) * before // after == origin
    silent = new_block and depth is DepthExpansion.IDENTITY
    return Source(f"{match['tower']}{origin}.{match['leaf']}", match["leaf"], vision, new_block, silent)
