"""Which component is worth tuning? Each one alone against all of them; with ``reward.heads=trained`` also a reward
model of its own against one that they share.

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/components.py --jobs=2

30 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    names = ("question_rewriter", "keyword_extractor", "context_retriever", "hint_generator", "answer_generator")
    return combinations({"optimize.components": ["all", *names], "optimize.order": [""], "seed": range(5)})
