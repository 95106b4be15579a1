"""OPRO (Yang et al., 2023): a language model writes new instructions after seeing old ones with their scores.

Unlike the released Optimas code, the proposer sees the current instruction with its own score, what was tried before,
and examples on which the current one fails; and its answer is parsed whole, however many lines it has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from optimas_jax.core.render import ScoredInstruction, render_opro
from optimas_jax.core.system import Component
from optimas_jax.core.types import Step, derive_seed
from optimas_jax.core.values import Prompt, PromptSpace
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.component import LanguageModel

_TAGGED = re.compile(r"<instruction>(.*?)(?:</instruction>|\Z)", re.DOTALL)
_TEMPERATURE = 0.7  # the paper's


def opro_requests(
    component: Component,
    history: Sequence[ScoredInstruction],
    failures: Sequence[tuple[Step, float]],
    proposer: LanguageModel,
    *,
    count: int,
    seed: int,
) -> list[CompletionRequest]:
    """``count`` requests for one instruction each, equal but for their seeds.

    Args:
      history: instructions with scores, the current one last.
      failures: steps of the component in badly scored runs, with the scores.
    """
    turns = render_opro(component.description, component.inputs, component.outputs, history, failures, proposer.style)
    return [
        CompletionRequest(
            model=proposer.model,
            messages=tuple(Message(role, text) for role, text in turns),
            max_tokens=proposer.max_tokens,
            temperature=_TEMPERATURE,
            stop=("\n\n",) if proposer.style == "text" else (),
            seed=derive_seed(seed, "opro", component.name, index),
            role="proposer",
        )
        for index in range(count)
    ]


def parse_instruction(answer: str) -> str:
    """The instruction in a proposer's answer: what stands between the tags, or all of it; never just a line of it."""
    tagged = _TAGGED.search(answer)
    text = (tagged.group(1) if tagged else answer).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def propose_instructions(answers: Sequence[str], current: Prompt, space: PromptSpace) -> list[Prompt]:
    """Prompts with new instructions and the current demonstrations: distinct, allowed, not the current one."""
    prompts: list[Prompt] = []
    for answer in answers:
        prompt = Prompt(parse_instruction(answer), current.demos)
        fits = 0 < len(prompt.instruction) <= space.max_instruction_chars
        if fits and prompt != current and prompt not in prompts:
            prompts.append(prompt)
    return prompts
