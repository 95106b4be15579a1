"""Rules from feedback: sentences that a metric says about several runs, added to the instruction as they are.

A metric that names the rule that was broken ("Use at most three words.") says the same of every run that broke it; what
it says of one example alone ("Expected Paris.") is no rule. No language model is asked, which is why small ones that
follow rules but write poor instructions gain as well.
"""

from __future__ import annotations

import collections
import re

from optimas_jax.core.values import Prompt
from optimas_jax.search.optimisers.task import PromptTask, Proposals

_SENTENCE = re.compile(r"[^\n]+?(?:[.!?](?=\s|$)|(?=\n|$))")
_RUNS = 2  # with the same sentence, which make it a rule
_RULES = 3  # that are proposed


def rules(task: PromptTask) -> list[str]:
    """Sentences of the feedback on at least ``_RUNS`` runs that reached the component and are not in its instruction,
    commonest first."""
    name, counts = task.component.name, collections.Counter[str]()
    for _, trace in task.runs:
        if trace.reaches(name):
            sentences = (sentence.strip() for sentence in _SENTENCE.findall(trace.feedback))
            counts.update(list(dict.fromkeys(filter(None, sentences))))
    common = [sentence for sentence, count in counts.most_common() if count >= _RUNS]
    return [sentence for sentence in common if sentence not in task.current.instruction][:_RULES]


def propose(task: PromptTask) -> Proposals:
    """The instruction with each rule, and with all of them."""
    found = rules(task)
    additions = [*found, *(["\n".join(found)] if len(found) > 1 else [])]
    prompts = [Prompt(f"{task.current.instruction}\n{rule}", task.current.demos) for rule in additions]
    return [("feedback", prompt) for prompt in prompts if len(prompt.instruction) <= task.space.max_instruction_chars]
