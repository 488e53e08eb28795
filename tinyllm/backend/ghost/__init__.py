"""Ghosts: arrays with a shape, a dtype and strides, and no content.

The engine runs on them as it does on NumPy's arrays: the same operations, the same rules, the same tiles. Since each
says when it comes and when it goes, running one training step on ghosts tells how much memory the step will need, for
a model that would not even fit here, and it cannot drift from the code: it is the code.
"""

from tinyllm.backend.ghost.array import Ghost
from tinyllm.backend.ghost.backend import GhostModule, haunted
from tinyllm.backend.ghost.meter import Meter, labelled

__all__ = ["Ghost", "GhostModule", "Meter", "haunted", "labelled"]
