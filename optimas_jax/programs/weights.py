"""Prompts whose model is tuned instead of their words: a LoRA adapter of a local model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.component import Component
from optimas_jax.core.values import LoraSpace
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.programs.declared import DeclarationError, Declared


def lora(
    instruction: str,
    *,
    name: str = "",
    description: str = "",
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stop: Sequence[str] = (),
) -> LoraDeclaration:
    """Declares a request to a local model whose weights are tuned, by a LoRA adapter: called with fields, it returns
    the text of the answer. The instruction stays as it is.

    The model is the one of the run, or ``config.policy.model``; ``config.policy`` has the rank and all settings of PPO
    and GRPO. Local rewards that tune weights are trained ones (``config.reward.heads``).

    Args:
      instruction: what the model is asked.
      name: of the component; by default the variable's name.
      description: one sentence on its purpose; by default the instruction.
      model, max_tokens, temperature, stop: in place of the run's settings.

    Raises:
      DeclarationError: for an empty instruction.

    Example:
      ```python
      tuned = oj.lora("Answer the question.", max_tokens=16)

      async def short(question):
          return {"answer": await tuned(question=question)}
      ```
    """
    if not isinstance(instruction, str) or not instruction.strip():
        raise DeclarationError(f"the instruction of a prompt is {instruction!r}, expected a text")
    settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    return LoraDeclaration(
        instruction, settings, tuple(stop), name=name, description=description or " ".join(instruction.split())
    )


class LoraDeclaration(Declared):
    """A request to a local model whose weights are tuned; see ``lora``."""

    def __init__(self, instruction: str, settings: Mapping[str, Any], stop: tuple[str, ...], **names: str):
        super().__init__(**names)
        self.instruction, self._settings, self._stop = instruction, settings, stop

    @property
    def declared(self) -> Any:
        return [self.description, self.instruction, dict(self._settings), self._stop]

    def build(self, language_model: LanguageModel) -> Component:
        settings = {key: value for key, value in self._settings.items() if value is not None}
        return llm_component(
            name=self.name,
            description=self.description,
            inputs=(),
            output=self.name,
            instruction=self.instruction,
            language_model=dataclasses.replace(language_model, **settings),
            stop=self._stop,
            space=LoraSpace(),
        )

    def __call__(self, **fields: Any) -> Any:
        """Asks the model about the fields; returns its text."""
        return self.call(self.plain(fields))
