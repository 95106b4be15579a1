"""Users' templates of prompts: a text with places for the instruction, the demonstrations and the fields of a call."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Collection, Mapping
from typing import Any

from optimas_jax.core.values import Prompt
from optimas_jax.llm.render import field_label, render_fields, render_value

INSTRUCTION, DEMOS = "instruction", "demos"


@dataclasses.dataclass(frozen=True)
class Template:
    """A text with places in braces.

    Attributes:
      text: ``{instruction}``, ``{demos}`` and ``{field}`` are places, ``{{`` and ``}}`` are braces.
    """

    text: str

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a text without ``{instruction}``, or with a place that is no name."""
        try:
            pieces = list(string.Formatter().parse(self.text))
        except ValueError as error:
            braces = "braces of the text are written {{ and }}"
            raise ValueError(f"the template cannot be read ({error}); {braces}: {self.text!r}") from error
        for _, name, form, conversion in pieces:
            if name is not None and (not name.isidentifier() or form or conversion):
                place = "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
                raise ValueError(
                    f"the template has the place {place}: a place is a name in braces, such as {{question}}; braces of "
                    "the text are written {{ and }}"
                )
        names = [name for _, name, _, _ in pieces if name]
        if INSTRUCTION not in names:
            raise ValueError(
                f"the template has no place {{{INSTRUCTION}}}, where the tuned instruction goes; it has "
                f"{', '.join(names) or 'none'}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all places."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.text) if name)

    @property
    def shows_demos(self) -> bool:
        """Whether there is a place for demonstrations."""
        return DEMOS in self.names

    def check(self, fields: Collection[str]) -> None:
        """Raises ``ValueError`` if the fields of a call differ from the fields of the template."""
        places = [name for name in dict.fromkeys(self.names) if name not in (INSTRUCTION, DEMOS)]
        problems = [f"the template has the place {{{name}}}" for name in places if name not in fields]
        problems += [f"the call has the field {name!r}" for name in fields if name not in places]
        if problems:
            raise ValueError(
                f"template and call do not fit: {'; '.join(problems)}, and the other has not. The template has "
                f"{', '.join(places) or 'no field'}; the call has {', '.join(fields) or 'no field'}"
            )

    def render(self, prompt: Prompt, fields: Mapping[str, Any], output: str) -> str:
        """The text with all places filled. Demonstrations are blocks of ``Label: value`` lines with an empty line
        between them; if there are none, the line of their place is left out."""
        label = field_label(output)
        blocks = [
            f"{render_fields(demo.inputs, tuple(demo.inputs))}\n{label}: {render_value(demo.outputs[output])}\n"
            for demo in prompt.demos
        ]
        values = {name: render_value(value) for name, value in fields.items()}
        values |= {INSTRUCTION: prompt.instruction, DEMOS: "\n".join(blocks)}
        parts, drops_newline = [], False
        for literal, name, _, _ in string.Formatter().parse(self.text):
            parts.append(literal.removeprefix("\n") if drops_newline else literal)
            parts.append(values[name] if name else "")
            drops_newline = name == DEMOS and not prompt.demos
        return "".join(parts)
