"""Rules from feedback: sentences that are in a metric's feedback on several runs, added to the instruction unchanged.

If feedback names a broken rule ("Use at most three words."), it is the same for every run that broke it; a sentence on
a single example ("Expected Paris.") is no rule. No language model writes these instructions, so that small models gain
as well, which follow rules but write poor instructions.
"""

from __future__ import annotations

import collections
import re

from optimas_jax.core.values import Prompt
from optimas_jax.search.optimisers.task import PromptTask, Proposals

_SENTENCE = re.compile(r"[^\n]+?(?:[.!?](?=\s|$)|(?=\n|$))")
_RUNS = 2  # least number of runs with the same sentence that make it a rule
_RULES = 3  # most rules that are proposed


def rules(task: PromptTask) -> list[str]:
    """Sentences in the feedback on at least ``_RUNS`` runs that reached the component, without those in its
    instruction; most common first."""
    name, counts = task.component.name, collections.Counter[str]()
    for _, trace in task.runs:
        if trace.reaches(name):
            sentences = (sentence.strip() for sentence in _SENTENCE.findall(trace.feedback))
            counts.update(list(dict.fromkeys(filter(None, sentences))))
    common = [sentence for sentence, count in counts.most_common() if count >= _RUNS]
    return [sentence for sentence in common if sentence not in task.current.instruction][:_RULES]


def propose(task: PromptTask) -> Proposals:
    """Proposes the instruction with each rule, and with all of them."""
    sentences = rules(task)
    additions = [*sentences, *(["\n".join(sentences)] if len(sentences) > 1 else [])]
    prompts = [Prompt(f"{task.current.instruction}\n{rule}", task.current.demos) for rule in additions]
    return [("feedback", prompt) for prompt in prompts if len(prompt.instruction) <= task.space.max_instruction_chars]
