"""OpenTelemetry: a span for the run, each iteration, each event and each call of a language model.

Calls follow the semantic conventions for generative AI (``gen_ai.*``). An event is a span of its own, with its scalars
and texts as attributes. A span is exported when it ends, so that a killed run leaves everything it did until then.
"""

from __future__ import annotations

import json
import os
from typing import Any

from optimas_jax.core.folder.events import Begin, End
from optimas_jax.core.running.tracking import ModelCall
from optimas_jax.core.text.secrets import redact
from optimas_jax.report.trackers.extras import check_installed, library
from optimas_jax.report.trackers.points import Entry, title_of
from optimas_jax.report.trackers.tracker import TrackerError

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"  # variable by which libraries are asked for contents
_CAPTURES = ("true", "1", "span_only", "span_and_event")
_TRACE = "opentelemetry.trace"
_LOCAL = "optimas_jax"  # provider of local models
_MOST = 100  # scalars of a span: the SDK keeps 128 attributes
_FINISH = {"ok": "stop", "truncated": "length", "refused": "content_filter"}


class OpenTelemetry:
    """Spans of a tracer of the global provider, or of a given provider. The user's span that is active when a run
    begins is the parent of the span of the run."""

    def __init__(self, provider: Any = None, content: bool | None = None):
        """
        Args:
          provider: a ``TracerProvider``.
          content: whether spans of calls have the messages; by default as set by the variable ``CAPTURE``.
        """
        asked = os.environ.get(CAPTURE, "").strip().lower() in _CAPTURES
        self._provider, self._content = provider, asked if content is None else content
        self._around: Any = None

    def check(self) -> None:
        check_installed("otel")
        trace = library(_TRACE)
        if self._provider is None and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            raise TrackerError(
                "OpenTelemetry has no TracerProvider, and spans would go nowhere: call opentelemetry.trace."
                "set_tracer_provider(...) before, start the command by opentelemetry-instrument, or give one: "
                "optimas_jax.tracker('otel', provider=...)"
            )
        around = trace.get_current_span().get_span_context()
        self._around = around if around.is_valid else None

    def begin(self, begin: Begin, known: str) -> str:
        """The id names the run's first span, which is the parent of the spans of later commands."""
        trace = library(_TRACE)
        self._tracer = trace.get_tracer(_LOCAL, tracer_provider=self._provider)
        first = _context_of(known) or self._around
        parent = None if first is None else trace.set_span_in_context(trace.NonRecordingSpan(first))
        attributes = {"optimas.name": title_of(begin), "optimas.resumed": begin.resumed}
        self._run = self._tracer.start_span(f"optimize {title_of(begin)}", context=parent, attributes=attributes)
        self._iteration: Any = None
        context = self._run.get_span_context()
        return known or f"{context.trace_id:032x}-{context.span_id:016x}"

    def log(self, one: Entry) -> None:
        """Records an event as a span; begins and ends the spans of iterations."""
        if one.event in ("pick", "search_end") and self._iteration is not None:
            self._iteration.end()
            self._iteration = None
        if one.event == "pick":
            attributes = {"optimas.iteration": one.position.iteration}
            name = f"iteration {one.position.iteration}"
            self._iteration = self._tracer.start_span(name, context=self._parent(), attributes=attributes)
        steps = {"optimas.iteration": one.position.iteration, "optimas.tokens": one.position.tokens}
        attributes: dict[str, Any] = {f"optimas.text.{name}": text for name, text in one.texts.items()}
        for first in range(0, max(len(one.points), 1), _MOST):
            points = one.points[first : first + _MOST]
            attributes |= steps | {f"optimas.{point.axis}": point.step for point in points}
            attributes |= {f"optimas.scalar.{point.name}": point.value for point in points}
            self._tracer.start_span(f"event {one.event}", context=self._parent(), attributes=attributes).end()
            attributes = {}

    def call(self, one: ModelCall) -> None:
        """Records a call, with its own times."""
        trace = library(_TRACE)
        attributes = call_attributes(one) | (content_attributes(one) if self._content else {})
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {one.model}",
            context=self._parent(),
            kind=trace.SpanKind.CLIENT if one.provider else trace.SpanKind.INTERNAL,
            attributes=attributes,
            start_time=_nanoseconds(one.began),
        )
        if "error.type" in attributes:
            span.set_status(trace.Status(trace.StatusCode.ERROR, one.outcome))
        span.end(end_time=_nanoseconds(one.ended))

    def end(self, end: End) -> None:
        trace = library(_TRACE)
        if self._iteration is not None:
            self._iteration.end()
        if not end.finished:
            self._run.set_status(trace.Status(trace.StatusCode.ERROR, redact(end.reason)[:1000]))
        self._run.end()

    def _parent(self) -> Any:
        trace = library(_TRACE)
        return trace.set_span_in_context(self._run if self._iteration is None else self._iteration)


def call_attributes(call: ModelCall) -> dict[str, Any]:
    """Attributes of the span of a call, without its messages."""
    failed = call.outcome not in _FINISH
    is_text = bool(call.messages) and call.messages[0]["role"] == "text"
    attributes = {
        "gen_ai.operation.name": "text_completion" if is_text else "chat",
        "gen_ai.provider.name": call.provider or _LOCAL,
        "gen_ai.request.model": call.model,
        "gen_ai.request.max_tokens": call.max_tokens,
        "gen_ai.request.temperature": call.temperature,
        "gen_ai.request.top_p": call.top_p,
        "gen_ai.usage.input_tokens": call.prompt_tokens,
        "gen_ai.usage.output_tokens": call.completion_tokens,
        "optimas.component": call.component,
        "optimas.phase": call.phase,
        "optimas.usd": call.usd,
    }
    if call.stop:
        attributes["gen_ai.request.stop_sequences"] = [redact(text) for text in call.stop]
    if call.seed is not None:
        attributes["gen_ai.request.seed"] = call.seed
    if call.json:
        attributes["gen_ai.output.type"] = "json"
    if failed:
        attributes["error.type"] = call.outcome
    else:
        attributes["gen_ai.response.finish_reasons"] = [_FINISH[call.outcome]]
    return attributes


def content_attributes(call: ModelCall) -> dict[str, str]:
    """Attributes with the messages of a call, in the form of the conventions, without secrets."""
    attributes = {"gen_ai.input.messages": _json([_message(message) for message in call.messages])}
    if call.outcome in _FINISH:
        answer = {"role": "assistant", "parts": _text(call.answer), "finish_reason": _FINISH[call.outcome]}
        attributes["gen_ai.output.messages"] = _json([answer])
    return attributes


def _message(message: Any) -> dict[str, Any]:
    role = "user" if message["role"] == "text" else message["role"]
    if message.get("call_id"):
        parts = [{"type": "tool_call_response", "id": message["call_id"], "response": message["content"]}]
    else:
        parts = _text(message["content"])
    parts += [{"type": "tool_call", **call} for call in message.get("calls", ())]
    return {"role": role, "parts": parts}


def _text(content: str) -> list[dict[str, Any]]:
    return [{"type": "text", "content": content}] if content else []


def _json(data: Any) -> str:
    return redact(json.dumps(data, ensure_ascii=False, default=str))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _context_of(known: str) -> Any:
    """The context of a span of an earlier command; None without one."""
    trace = library(_TRACE)
    if not known:
        return None
    trace_id, _, span_id = known.partition("-")
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=sampled)
