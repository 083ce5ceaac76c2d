"""What tasks with images have in common."""

from __future__ import annotations

from typing import Final

from modelchain.spec import EvaluationType

OF_IMAGES: Final = (
    EvaluationType.LINEAR_PROBE,
    EvaluationType.FINE_TUNE,
)  # what every image tower is evaluated by


IMAGE_FIELDS: Final = frozenset(  # of the chain, where samples are images
    {
        ("data", "samples"),
        ("data", "sources"),
        ("data", "draftDecoding"),
        ("data", "imageKeys"),
        ("data", "blockMebibytes"),
        ("data", "windowBlocks"),
        ("data", "randomCropScale"),
        ("training", "patchDropout"),
    }
)
