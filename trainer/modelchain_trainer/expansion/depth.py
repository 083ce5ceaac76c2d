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

from dataclasses import dataclass

from modelchain.spec import DepthExpansion
from modelchain_trainer.model.layout import Layout


@dataclass(frozen=True)
class Source:
    """Which parameter of the small model a parameter of the large one is made from."""

    name: str
    new_block: bool  # a block that the small model does not have
    silent: bool = False  # a new block that writes nothing at first


def source_of(name: str, small: Layout, large: Layout, depth: DepthExpansion) -> Source:
    """The source of the large model's parameter `name`."""
    block = large.parameters[name].block
    if block is None:
        return Source(name, new_block=False)
    before, after = small.depths[block.tower], large.depths[block.tower]
    if depth is DepthExpansion.STACK:
        origin, new_block = block.number % before, block.number >= before
    else:
        origin = block.number * before // after
        new_block = block.number > 0 and (block.number - 1) * before // after == origin
    silent = new_block and depth is DepthExpansion.IDENTITY
    return Source(f"{block.tower}{origin}.{block.leaf}", new_block, silent)
