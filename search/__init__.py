"""What can be chosen, and how: spaces, candidates, compression, samplers and the front.

The names here need numpy only. What needs torch or Optuna is imported from its module, so that a
command that shows a finished study answers at once: `space`, `samplers`, `objective`,
`compression.pruning`.
"""

from .candidate import FLOAT_BITS, FLOAT_LAYER, HALF_BITS, Candidate, LayerChoice
from .errors import PruningError, SpaceError
from .pareto import hypervolume, hypervolume_history, is_pareto_optimal

__all__ = [
    "FLOAT_BITS",
    "FLOAT_LAYER",
    "HALF_BITS",
    "Candidate",
    "LayerChoice",
    "PruningError",
    "SpaceError",
    "hypervolume",
    "hypervolume_history",
    "is_pareto_optimal",
]
