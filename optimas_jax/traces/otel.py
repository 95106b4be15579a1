"""Reads recorded calls from OpenTelemetry's GenAI spans: one span a line, or exports with ``resourceSpans``.

Content is in ``gen_ai.input.messages`` and ``gen_ai.output.messages``, on the span or on its events or log records.
Before version 1.37 of the conventions it is in one event for each message, or in ``gen_ai.prompt`` and
``gen_ai.completion``. Scores are in ``gen_ai.evaluation.result`` events, on the call or on a span around it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.core.text.json_text import JsonError, parse_json, shown
from optimas_jax.traces.records import (
    ASSISTANT,
    SYSTEM,
    Recorded,
    TraceError,
    Turn,
    finite,
    first_text,
    read_message,
    read_role,
    read_text,
)

_EXPORTS = ("resourceSpans", "resource_spans", "resourceLogs", "resource_logs")
_EVALUATION = "gen_ai.evaluation.result"
_SCORE, _NAME, _WHY = "gen_ai.evaluation.score.value", "gen_ai.evaluation.name", "gen_ai.evaluation.explanation"
_OPERATIONS = re.compile(r"(chat|text_completion|generate_content|invoke_agent|invoke_workflow|execute_tool)\s+")
_MOST_AROUND = 100  # number of spans around a span that are followed
_CALL = ("name", "arguments")  # fields of a call
_MESSAGE = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")


@dataclasses.dataclass(frozen=True)
class Span:
    """The parts of a span that are read.

    Attributes:
      where: file and line.
      trace, id, parent: ids; "" where the file has none.
      name: name of the span.
      attributes: attributes of the span.
      events: (name, attributes and body) of its events and log records.
    """

    where: str
    trace: str
    id: str
    parent: str
    name: str
    attributes: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def is_otel(item: Mapping[str, Any]) -> bool:
    """Whether an object is an export or a span."""
    ids = ("traceId", "trace_id", "spanId", "span_id", "context", "events", "kind")
    return any(key in item for key in _EXPORTS) or ("attributes" in item and any(key in item for key in ids))


def read_spans(item: Mapping[str, Any], where: str) -> list[Span]:
    """The spans of an export, or an object that is itself a span. Log records become spans without a name, which
    ``read_otel`` joins to their spans.

    Raises:
      TraceError: a field has the wrong type; names the field.
    """
    exported = []
    for wide, middle, narrow in (("Spans", "Spans", "spans"), ("Logs", "Logs", "logRecords")):
        for resource in _list(item, f"resource{wide}", where):
            for scope in _list(resource, f"scope{middle}", where):
                exported += _list(scope, narrow, where)
    whole = exported if any(key in item for key in _EXPORTS) else [item]
    number = f", span {{}} of {len(whole)}" if len(whole) > 1 else ""
    return [_span(part, where + number.format(index)) for index, part in enumerate(whole, start=1)]


def _list(item: Any, name: str, where: str) -> list[Any]:
    """A list field of an export, whose name may be in camel case or in snake case."""
    snake = re.sub(r"([A-Z])", lambda letter: "_" + letter[1].lower(), name)
    if not isinstance(item, Mapping):
        raise TraceError(f"{where}: {shown(item)} in an export, expected an object")
    value = item.get(name, item.get(snake, []))
    if not isinstance(value, list):
        raise TraceError(f"{where}: {name} is {shown(value)}, expected a list")
    return value


def _span(item: Any, where: str) -> Span:
    if not isinstance(item, Mapping):
        raise TraceError(f"{where}: a span is {shown(item)}, expected an object")
    context = item["context"] if isinstance(item.get("context"), Mapping) else {}
    trace = first_text(item, "traceId", "trace_id") or first_text(context, "trace_id", "traceId")
    span_id = first_text(item, "spanId", "span_id") or first_text(context, "span_id", "spanId")
    parent = first_text(item, "parentSpanId", "parent_span_id", "parent_id")
    name = first_text(item, "name")
    events = [_event(event, where) for event in _list(item, "events", where)]
    attributes = _attributes(item.get("attributes"), where)
    if "body" in item or "eventName" in item or "event.name" in attributes:  # a log record
        events.append(_event(item, where))
        attributes, name = {}, ""
    return Span(where, trace, span_id, parent, name, attributes, tuple(events))


def _event(item: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(item, Mapping):
        raise TraceError(f"{where}: an event is {shown(item)}, expected an object")
    attributes = dict(_attributes(item.get("attributes"), where))
    body = _value(item.get("body"), where)
    if isinstance(body, Mapping):
        attributes |= body
    elif isinstance(body, str) and body:
        attributes.setdefault("content", body)
    name = first_text(item, "eventName", "event_name", "name") or first_text(attributes, "event.name")
    return name, attributes


def _attributes(value: Any, where: str) -> Mapping[str, Any]:
    """Attributes as a mapping; an export has a list of keys and typed values."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {str(key): _value(item, where) for key, item in value.items()}
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) and "key" in entry for entry in value):
        raise TraceError(f"{where}: attributes are {shown(value)}, expected an object, or a list of keys and values")
    return {str(entry["key"]): _value(entry.get("value"), where) for entry in value}


def _value(value: Any, where: str) -> Any:
    """A typed value of an export, or a plain one."""
    match value:
        case {"stringValue": plain} | {"boolValue": plain} | {"string_value": plain} | {"bool_value": plain}:
            return plain
        case {"intValue": plain} | {"doubleValue": plain} | {"int_value": plain} | {"double_value": plain}:
            return plain
        case {"arrayValue": {**array}} | {"array_value": {**array}}:
            return [_value(item, where) for item in _list(array, "values", where)]
        case {"kvlistValue": {**pairs}} | {"kvlist_value": {**pairs}}:
            return _attributes(_list(pairs, "values", where), where)
        case _:
            return value


def read_otel(spans: Sequence[Span]) -> list[Recorded]:
    """The calls of models among spans, with names and scores from the spans around them. A call without content has an
    empty answer.

    Raises:
      TraceError: content has no known form, or a score is no number.
    """
    spans = _with_logs(spans)
    by_id = {(span.trace, span.id): span for span in spans if span.id}
    around = {id(span): _ancestors(span, by_id) for span in spans}
    calls = [span for span in spans if _is_call(span)]
    # Messages of an agent repeat the messages of its calls.
    inner = {id(outer) for span in calls for outer in around[id(span)]}
    of_runs: dict[str, tuple[float | None, str]] = {}
    for span in spans:
        if span.trace and not around[id(span)] and (scored := _score(span))[0] is not None:
            of_runs[span.trace] = scored
    recorded = []
    for span in calls:
        if id(span) in inner:
            continue
        chain = [span, *around[id(span)]]
        score, feedback = next((scored for link in chain if (scored := _score(link))[0] is not None), (None, ""))
        if score is None:
            score, feedback = of_runs.get(span.trace, (None, ""))
        turns, answers = _content(span)
        names = tuple(dict.fromkeys(filter(None, (name for link in chain for name in _names(link)))))
        recorded += [
            Recorded(span.where, names, span.trace, turns, answer, score=score, feedback=feedback)
            for answer in answers or [""]
        ]
    return recorded


def _with_logs(spans: Sequence[Span]) -> list[Span]:
    """Spans with the events of their log records; log records without a span stay separate."""
    logs: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    named = {(span.trace, span.id) for span in spans if span.name and span.id}
    alone = []
    for span in spans:
        if not span.name and span.id and (span.trace, span.id) in named:
            logs.setdefault((span.trace, span.id), []).extend(span.events)
        else:
            alone.append(span)
    return [
        dataclasses.replace(span, events=(*span.events, *logs.get((span.trace, span.id), ()))) if span.name else span
        for span in alone
    ]


def _ancestors(span: Span, by_id: Mapping[tuple[str, str], Span]) -> list[Span]:
    """The spans around a span, the nearest first; at most ``_MOST_AROUND``."""
    ancestors: dict[int, Span] = {}  # by identity: comparing spans is slow, and some spans contain themselves
    inner = span
    while inner.parent and len(ancestors) < _MOST_AROUND:
        outer = by_id.get((span.trace, inner.parent))
        if outer is None or outer is span or id(outer) in ancestors:
            break
        ancestors[id(outer)] = inner = outer
    return [*ancestors.values()]


def _is_call(span: Span) -> bool:
    operation = span.attributes.get("gen_ai.operation.name")
    if operation in ("embeddings", "execute_tool", "create_agent", "retrieval"):
        return False
    named = any(key.startswith("gen_ai.") and key not in (_SCORE, _NAME, _WHY) for key in span.attributes)
    agent = set(span.attributes) <= {"gen_ai.agent.name", "gen_ai.agent.id", "gen_ai.conversation.id"}
    has_events = any(name.startswith("gen_ai.") and name != _EVALUATION for name, _ in span.events)
    return (named and not agent) or has_events


def _names(span: Span) -> Iterator[str]:
    """Names by which a span may name a component."""
    yield first_text(span.attributes, "optimas.component", "component")
    yield first_text(span.attributes, "gen_ai.agent.name")
    yield _OPERATIONS.sub("", span.name)
    yield first_text(span.attributes, "gen_ai.request.model", "gen_ai.response.model")


def _score(span: Span) -> tuple[float | None, str]:
    evaluations = [attributes for name, attributes in span.events if name == _EVALUATION]
    for data in (*evaluations, span.attributes):
        for key in (_SCORE, "score"):
            if data.get(key) is not None:
                return finite(data[key], f"{span.where}: {key}"), first_text(data, _WHY, "feedback")
    return None, ""


def _content(span: Span) -> tuple[tuple[Turn, ...], list[str]]:
    """Messages before the answers of a call, and the answers."""
    where, turns, answers = span.where, list[Turn](), list[str]()
    for data in (span.attributes, *(attributes for _, attributes in span.events)):
        if "gen_ai.system_instructions" in data:
            turns.append((SYSTEM, read_text(_data(data["gen_ai.system_instructions"], where, loose=True), where)))
        if not any(role != SYSTEM for role, _ in turns):
            messages = _messages(_listed(data.get("gen_ai.input.messages")), where)
            turns += messages or _messages(data.get("gen_ai.prompt"), where)
        if not answers:
            replies = _messages(_listed(data.get("gen_ai.output.messages")), where)
            answers += [text for _, text in replies or _messages(data.get("gen_ai.completion"), where, ASSISTANT)]
    if not turns and not answers:
        turns += _numbered(span.attributes, "gen_ai.prompt", where)
        answers += [text for _, text in _numbered(span.attributes, "gen_ai.completion", where)]
    if not turns and not answers:
        for name, data in span.events:
            if of_role := _MESSAGE.fullmatch(name):
                role = first_text(data, "role") or of_role[1]
                message = {**data, "content": _data(data.get("content"), where, loose=True)}
                turns.append((read_role(role, where), read_message(message, where)))
            elif name == "gen_ai.choice":
                message = _data(data.get("message", data.get("content")), where, loose=True, bare="message" in data)
                answers.append(_text(message, where))
    return tuple(turns), answers


def _listed(value: Any) -> Any:
    """Messages of an attribute that is always a list; None for an empty one."""
    return None if isinstance(value, str) and value.strip() == "[]" else value


def _messages(value: Any, where: str, role: str = "user") -> list[Turn]:
    """Messages of an attribute: structured, as JSON, or a plain text of one ``role``."""
    data = _data(value, where, loose=True)
    if data is None:
        return []
    if isinstance(data, str):
        return [(role, read_text(data, where))]
    if isinstance(data, Mapping):
        data = [data]
    if not isinstance(data, list):
        raise TraceError(f"{where}: messages are {shown(data)}, expected a list of messages")
    turns = []
    for message in data:
        if not isinstance(message, Mapping):
            raise TraceError(f"{where}: a message is {shown(message)}, expected an object with role and parts")
        turns.append((read_role(message.get("role", role), where), _text(message, where)))
    return turns


def _text(message: Any, where: str) -> str:
    return read_message(message, where) if isinstance(message, Mapping) else read_text(message, where)


def _numbered(attributes: Mapping[str, Any], prefix: str, where: str) -> list[Turn]:
    """Messages of numbered attributes: ``gen_ai.prompt.0.role``, ``gen_ai.prompt.0.content``."""
    pattern = re.compile(re.escape(prefix) + r"\.([0-9]{1,9})\.(?:content|tool_calls\.([0-9]{1,9})\.name)")
    matches = [match for key in attributes if (match := pattern.fullmatch(key))]
    role = "assistant" if prefix.endswith("completion") else "user"
    turns = []
    for number in sorted({match[1] for match in matches}, key=int):
        begin = f"{prefix}.{number}"
        named = sorted((match[2] for match in matches if match[1] == number and match[2]), key=int)
        fields = [{name: attributes.get(f"{begin}.tool_calls.{call}.{name}") for name in _CALL} for call in named]
        content = _data(attributes.get(f"{begin}.content"), where, loose=True, lists=True)
        text = read_message({"content": content, "tool_calls": fields}, where)
        turns.append((read_role(attributes.get(f"{begin}.role", role), where), text))
    return turns


def _data(value: Any, where: str, *, loose: bool = False, lists: bool = False, bare: bool = False) -> Any:
    """Structured content, which a span may hold as JSON text. ``loose`` returns any other text unchanged, ``lists``
    also a JSON text that is no list of parts. An object without ``role`` or ``parts``, which a model may answer, is
    content only if it may be ``bare``."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        data = parse_json(value)
    except JsonError as error:
        if loose:
            return value
        raise TraceError(f"{where}: content of messages is {shown(value)}: {error}") from None
    parts = (
        isinstance(data, list)
        and data
        and all(isinstance(part, Mapping) and ("type" in part or "role" in part) for part in data)
    )
    fields = data if isinstance(data, Mapping) else {}
    has_content = any(name in fields for name in ("content", "tool_calls"))
    message = "parts" in fields or (has_content and (bare or ("role" in fields and not lists)))
    return data if parts or message else value
