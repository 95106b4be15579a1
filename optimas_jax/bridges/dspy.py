"""Modules of DSPy as programs: ``forward`` runs as it is, its predictors are the components.

The instructions and the demonstrations of each predictor are tuned, as by DSPy's own optimisers. DSPy's adapter writes
the messages and reads the answers, so typed signatures keep working. The answers come from the model of the run, with
its tape and within its budget, whatever ``dspy.configure`` says.

Example:
  ```python
  program = oj.dspy.program(module)
  result = oj.optimize(program, oj.dspy.metric(grade), "questions.jsonl", workdir="runs/dspy")
  oj.dspy.tuned(module, result.best).save("module.json")
  ```
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from optimas_jax.core.component import Component, ComponentFailure, RunContext
from optimas_jax.core.scoring import Score
from optimas_jax.core.types import Outcome, thaw
from optimas_jax.core.values import Demo, Prompt, PromptSpace, Value
from optimas_jax.llm.agent import as_text
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.forms.answers import completed, used_text
from optimas_jax.programs.declared import DeclarationError, Declared
from optimas_jax.programs.plain import from_plain, to_plain
from optimas_jax.programs.program import Program
from optimas_jax.programs.program import program as declare

_MOST_DEMOS, _MOST_LETTERS = 4, 4000
_FINISH = {Outcome.OK: "stop", Outcome.TRUNCATED: "length"}
_OWN = ("signature", "demos", "lm")  # arguments of a predictor that would override what is tuned


def _library() -> Any:
    try:
        import dspy
    except ImportError as error:
        raise ImportError("DSPy is not installed: pip install 'optimas_jax[dspy]'") from error
    return dspy


def program(module: Any, *, name: str = "", timeout: float | None = None) -> Program:
    """A module as a program. The module is not changed, and runs of the program share no state.

    Args:
      module: ``dspy.Module`` with ``forward``, or ``aforward`` alone. Its arguments are columns of the rows; fields of
        the prediction that it returns are the outputs.
      name: by default the name of its class.
      timeout: seconds of a run (``optimas_jax.program``).

    Raises:
      DeclarationError: the argument is no module, or has no predictors.
    """
    dspy = _library()
    if not isinstance(module, dspy.Module):
        raise DeclarationError(f"the module is {module!r:.200}, expected an instance of dspy.Module")
    components = {path: _Predictor(path, predictor) for path, predictor in module.named_predictors()}
    module_class = type(module)
    awaited = "forward" not in _defined(module_class) and "aforward" in _defined(module_class)

    def run(**fields):  # without types: outputs are checked when a run returns them
        return _outputs(_recorded(module, components)(**fields))

    async def run_async(**fields):
        return _outputs(await _recorded(module, components).acall(**fields))

    function: Any = run_async if awaited else run
    _, *arguments = inspect.signature(module_class.aforward if awaited else module_class.forward).parameters.values()
    function.__signature__ = inspect.Signature(arguments)
    function.__name__ = module_class.__name__
    return declare(function, components=[*components.values()], name=name or module_class.__name__, timeout=timeout)


def _defined(kind: type) -> set[str]:
    """Names that a user's class and its bases below ``dspy.Module`` define."""
    base = _library().Module
    return {
        name
        for ancestor in kind.__mro__
        if issubclass(ancestor, base) and ancestor is not base
        for name in vars(ancestor)
    }


def tuned(module: Any, best: Mapping[str, Any] | Any) -> Any:
    """A copy of a module with the instructions and demonstrations of a result: plain DSPy, to run or to save.

    Args:
      module: the module that was optimised; it is not changed.
      best: ``result.best``, or what ``optimas_jax.load`` returns; prompts by component.

    Raises:
      DeclarationError: ``best`` has no prompt for a predictor.
    """
    copy = module.deepcopy()
    for path, predictor in copy.named_predictors():
        try:
            prompt = best[component_name(path)]
        except KeyError:
            raise DeclarationError(
                f"the result has no component {component_name(path)!r} for the predictor {path}: it is of another "
                "module"
            ) from None
        _set(predictor, prompt)
    return copy


def metric(function: Callable[..., Any]) -> Callable[..., Any]:
    """A metric of DSPy's form, ``(example, prediction, trace=None)``, as a metric of a program. The number, the truth
    value or the ``dspy.Prediction(score=..., feedback=...)`` that it returns is the score.

    Args:
      function: of DSPy's example and prediction; ``trace`` is None.

    Raises:
      ImportError: DSPy is not installed.
    """
    dspy = _library()

    @functools.wraps(function)
    def judged(example: Any, outputs: Any) -> Any:
        score = function(dspy.Example(**example), dspy.Prediction(**outputs), None)
        if not isinstance(score, dspy.Prediction):
            return score
        return Score(float(score.score), str(getattr(score, "feedback", "") or ""))

    judged.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("example", "outputs")]
    )
    return judged


def component_name(path: str) -> str:
    """The name of a predictor's component: its path in the module, without a last ``.predict``."""
    return path.removesuffix(".predict").replace(".", "_").replace("[", "_").replace("]", "")


def _recorded(module: Any, components: Mapping[str, _Predictor]) -> Any:
    """A copy of a module whose predictors are calls of components."""
    copy = module.deepcopy()
    for path, predictor in copy.named_predictors():
        predictor.forward = functools.partial(components[path].predict, predictor)
        predictor.aforward = functools.partial(components[path].apredict, predictor)
    return copy


def _outputs(prediction: Any) -> Any:
    """The fields of a prediction; anything else that a module returned, unchanged."""
    return dict(prediction.items()) if isinstance(prediction, _library().Prediction) else prediction


def _set(predictor: Any, prompt: Prompt) -> None:
    """Puts a prompt into a predictor; fields of demonstrations get the types that the signature declares."""
    dspy, signature = _library(), predictor.signature
    fields = {**signature.input_fields, **signature.output_fields}
    predictor.signature = signature.with_instructions(prompt.instruction)
    predictor.demos = [
        dspy.Example(
            **{
                name: from_plain(fields[name].annotation, value) if name in fields else value
                for name, value in thaw({**demo.inputs, **demo.outputs}).items()
            }
        ).with_inputs(*demo.inputs)
        for demo in prompt.demos
    ]


class _Predictor(Declared):
    """A predictor of a module as a component."""

    def __init__(self, path: str, predictor: Any):
        signature = predictor.signature
        super().__init__(component_name(path), " ".join(signature.instructions.split()))
        self._predictor = predictor
        self.inputs, self.outputs = tuple(signature.input_fields), tuple(signature.output_fields)
        demos = tuple(self._demo(dict(demo)) for demo in predictor.demos)
        self.default = Prompt(signature.instructions, demos)

    def _demo(self, fields: Mapping[str, Any]) -> Demo:
        plain = {name: to_plain(value, f"{self.name}({name})") for name, value in fields.items()}
        inputs = {name: plain[name] for name in self.inputs if name in plain}
        return Demo(inputs, {name: plain[name] for name in self.outputs if name in plain})

    @property
    def declared(self) -> Any:
        signature = self._predictor.signature
        fields = {
            name: [str(field.annotation), field.json_schema_extra.get("desc", "")]
            for name, field in signature.fields.items()
        }
        demos = [[thaw(demo.inputs), thaw(demo.outputs)] for demo in self.default.demos]
        return [self.default.instruction, demos, fields, repr(sorted(self._predictor.config.items()))]

    def build(self, language_model: LanguageModel) -> Component:
        longest = max(_MOST_LETTERS, 2 * len(self.default.instruction))
        return Component(
            self.name,
            self.description,
            self.inputs,
            self.outputs,
            functools.partial(self._run, language_model),
            PromptSpace(_MOST_DEMOS, longest),
            self.default,
        )

    def restore(self, outputs: Mapping[str, Any]) -> Any:
        """A prediction with the types of the signature."""
        dspy, signature = _library(), self._predictor.signature
        typed = {
            name: from_plain(signature.output_fields[name].annotation, value) for name, value in thaw(outputs).items()
        }
        return dspy.Prediction.from_completions([typed], signature=signature)

    def predict(self, predictor: Any, **fields: Any) -> Any:
        """Replaces ``forward`` of a predictor in a run."""
        return self.call(self._inputs(predictor, fields))

    async def apredict(self, predictor: Any, **fields: Any) -> Any:
        """Replaces ``aforward`` of a predictor in a run."""
        return await self.call(self._inputs(predictor, fields))

    def _inputs(self, predictor: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        if names := [name for name in _OWN if fields.get(name) is not None]:
            raise self._scope().fail(
                DeclarationError(
                    f"predictor {self.name!r} is called with {', '.join(names)}, which would take the place of what is "
                    "tuned: give the predictor its signature when it is made"
                )
            )
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in predictor.signature.input_fields.items()
            if not field.is_required()
        }
        return self.plain({name: value for name, value in {**defaults, **fields}.items() if name in self.inputs})

    async def _run(
        self, model: LanguageModel, fields: Mapping[str, Any], value: Value | None, context: RunContext
    ) -> Mapping[str, Any]:
        """Runs the predictor itself, with the prompt ``value`` and the model of the run."""
        assert isinstance(value, Prompt)
        dspy, engine = _library(), _Engine(model, context)
        predictor = self._predictor.deepcopy()
        _set(predictor, value)
        types = {name: field.annotation for name, field in predictor.signature.input_fields.items()}
        typed = {name: from_plain(types.get(name), item) for name, item in fields.items()}
        served = dspy.LM(f"run/{self.name}", cache=False, num_retries=0, engine=engine, async_engine=engine.waiting())
        try:
            with dspy.context(lm=served, trace=None, track_usage=False):
                prediction = await predictor.acall(**typed, lm=served)
            return {name: to_plain(prediction[name], f"{self.name}.{name}") for name in self.outputs}
        except Exception as error:
            if engine.failures:
                raise engine.failures[0] from None
            raise ComponentFailure(Outcome.PARSE_ERROR, f"{type(error).__name__}: {error}"[:2000]) from error


class _Engine:
    """DSPy's interface of a model; the completer of a run answers its requests."""

    def __init__(self, model: LanguageModel, context: RunContext):
        self._model, self._context = model, context
        self.failures: list[BaseException] = []

    def waiting(self) -> _Waiting:
        """The same engine for asynchronous requests."""
        return _Waiting(self.answer)

    def complete(self, request: Any) -> Any:
        raise RuntimeError("predictors of a run are awaited: DSPy asked for an answer in a thread")

    async def answer(self, request: Any) -> Any:
        """The answer to a request, in DSPy's types."""
        try:
            completion_request = self._asked(request)
            completion = await completed(self._context, completion_request)
            text = used_text(self._context, completion_request, completion)
        except BaseException as failure:
            self.failures.append(failure)
            raise
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": _FINISH[completion.outcome]}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": request.model, "choices": [choice]}
        return _library().lm15.response_from_openai_chat(body, model=request.model)

    def _asked(self, request: Any) -> CompletionRequest:
        model, settings = self._model, request.config
        system = request.system if isinstance(request.system, str) else _text(request.system or ())
        turns = [Message("system", system)] if system else []
        turns += [
            Message("system" if message.role == "developer" else message.role, _text(message.parts))
            for message in request.messages
        ]
        if model.style == "text":
            turns = [Message("text", as_text(turns, None))]
        temperature = self._context.temperature
        return CompletionRequest(
            model=model.model,
            messages=tuple(turns),
            max_tokens=settings.max_tokens or model.max_tokens,
            temperature=model.temperature if temperature is None else temperature,
            top_p=model.top_p,
            stop=tuple(settings.stop),
            seed=self._context.seed,
            role=self._context.component,
        )


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """The asynchronous form of ``_Engine``."""

    answer: Callable[[Any], Any]

    async def complete(self, request: Any) -> Any:
        return await self.answer(request)


def _text(parts: Any) -> str:
    """The text of a message; raises ``ComponentFailure`` for a part that is no text."""
    if odd := [part.type for part in parts if part.type != "text"]:
        raise ComponentFailure(Outcome.CRASHED, f"a message of DSPy has a part of type {odd[0]}: texts are read")
    return "".join(part.text for part in parts)
