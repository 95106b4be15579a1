"""The result of a run in use: its program, loaded and called; its local rewards; predictions; comparisons of bests."""

from optimas_jax.saved.folder import Saved, read_saved
from optimas_jax.saved.models import completer_of, language_model
from optimas_jax.saved.optimized import Optimized, load

__all__ = ["Optimized", "Saved", "completer_of", "language_model", "load", "read_saved"]
