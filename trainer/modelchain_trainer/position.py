"""How far a rank has come, for its last words. No torch here: a rank may end before it is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """Filled in by training.py as it goes."""

    step: int | None = None  # finished steps, once training has begun
    checkpoint_step: int | None = None  # of the newest whole checkpoint

    def stop_message(self) -> str:
        """What to say when asked to end."""
        if self.checkpoint_step is not None:
            return (
                f"asked to end; the next attempt goes on from the checkpoint at step {self.checkpoint_step}"
            )
        return "asked to end before there was anything to keep"
