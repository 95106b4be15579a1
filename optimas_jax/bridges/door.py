"""The door: turns a request in the format of OpenAI's API into the call of a component, and its result into an answer.

A request belongs to the run whose token is in its path (``/run/TOKEN/v1/chat/completions``) or is its key, else to the
run whose context it comes from, else to the only run in flight. Outside of all runs the agents of ``Door.outside``
answer. Errors have OpenAI's form, and tell clients not to retry.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from optimas_jax.bridges.asked import Asked
from optimas_jax.bridges.chat import chat_answer, chat_events, read_chat
from optimas_jax.bridges.order import preceding
from optimas_jax.bridges.responses import read_responses, responses_answer, responses_events
from optimas_jax.core.component import Component, Route
from optimas_jax.core.program import (
    RUN_MARK,
    ProgramEnded,
    ProgramError,
    Scope,
    current_scope,
    running_programs,
)
from optimas_jax.core.running import event_loop
from optimas_jax.core.running.arrivals import RunEnded, is_beside
from optimas_jax.core.types import Call, Outcome, StopRun, digest, freeze
from optimas_jax.llm.agent import call_ids
from optimas_jax.llm.clients.remote import ORIGIN, origin
from optimas_jax.server.protocol import RequestError

_PATH = re.compile(
    r"(?:.*/run/(?P<token>\w+))?/?(?:v1/)?(?P<rest>chat/completions|responses|models(?:/(?P<name>.+))?)/?"
)
_RETRIED = "x-stainless-retry-count"  # header of OpenAI's SDKs: how often the request was sent before
_WIRES = {
    "chat/completions": (read_chat, chat_answer, chat_events),
    "responses": (read_responses, responses_answer, responses_events),
}
_REFUSED = {Outcome.REFUSED: "content_filter"}
_PATIENCE = 20.0  # seconds to wait until the event loop of a run takes a request of another thread
NO_RETRY = {"x-should-retry": "false"}  # the run has repeated its attempts already


@dataclasses.dataclass(frozen=True)
class Request:
    """A request, from a client in this process or over HTTP; names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """The response to a request.

    Attributes:
      body: JSON; or the events of a stream.
      unread: callback for a client that left before it got the response.
    """

    status: int
    body: Mapping[str, Any] | Iterable[str]
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unread: Callable[[], None] = lambda: None

    @property
    def streams(self) -> bool:
        return not isinstance(self.body, Mapping)

    @property
    def kind(self) -> str:
        return "text/event-stream" if self.streams else "application/json"

    @property
    def content(self) -> bytes:
        """The whole body."""
        text = json.dumps(self.body) if isinstance(self.body, Mapping) else "".join(self.body)
        return text.encode()


@dataclasses.dataclass(frozen=True)
class Outside:
    """The agents that answer outside of all runs.

    Attributes:
      components: agents by name.
      call: calls the agent of a name on inputs.
    """

    components: Mapping[str, Component]
    call: Callable[[str, Mapping[str, Any]], Awaitable[Call]]


async def _no_call(name: str, inputs: Mapping[str, Any]) -> Call:
    raise AssertionError(f"there are no agents, and {name!r} was called")


NOTHING = Outside({}, _no_call)


@dataclasses.dataclass(frozen=True)
class Door:
    """Answers requests, each on the event loop of the run that it belongs to.

    Args:
      outside: makes the agents that answer outside of all runs.
    """

    outside: Callable[[], Outside] = lambda: NOTHING

    async def answer(self, request: Request) -> Answer:
        """The answer to a request, on any event loop.

        Raises:
          asyncio.CancelledError: in a task of a program whose run has ended.
        """
        try:
            run = find_run(request)
        except RequestError as error:
            return failed(error)
        answering = self._answered(request, run)
        if run is None or event_loop.running() is run.ended.get_loop():
            return await answering
        loop = run.ended.get_loop()
        if not await _listens(loop):
            answering.close()
            return failed(_held_up())
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answering, loop))

    def answer_in_thread(self, request: Request) -> Answer:
        """The answer to a request, in a thread without an event loop; the thread waits."""
        try:
            run = find_run(request)
            if event_loop.running() is not None:
                raise RequestError(
                    400,
                    "a client that blocks was called on an event loop, which it would hold up: use the asynchronous "
                    "one, optimas_jax.client(), or call it by asyncio.to_thread",
                )
        except RequestError as error:
            return failed(error)
        answering = self._answered(request, run)
        if run is None:
            return event_loop.run(answering)
        try:
            return asyncio.run_coroutine_threadsafe(answering, run.ended.get_loop()).result()
        except concurrent.futures.CancelledError:
            raise ProgramEnded from None

    async def _answered(self, request: Request, run: Scope | None) -> Answer:
        try:
            match = _PATH.fullmatch(request.path)
            if match is None:
                raise RequestError(
                    404, f"there is no {request.path[:200]}: there are chat/completions, responses, models"
                )
            if match["rest"].startswith("models"):
                return self._models(request, match["name"], run)
            if request.method != "POST":
                raise RequestError(405, f"{request.method} {request.path[:200]}: send POST")
            return await self._called(request, run, *_WIRES[match["rest"]])
        except RequestError as error:
            return failed(error)
        except RecursionError:
            return failed(RequestError(400, "the body is nested too deep"))
        except RunEnded:
            return failed(_ended())

    async def _called(self, request: Request, run: Scope | None, read: Any, write: Any, stream: Any) -> Answer:
        if not isinstance(request.body, Mapping):
            raise RequestError(400, "the body must be a JSON object")
        asked: Asked = read(request.body)
        components = self._components(run)
        name = choose(components, asked, request.headers)
        inputs = freeze(asked.inputs)
        if run is None:
            call, unread = await self._outside(name, inputs), lambda: None
        else:
            here = current_scope()
            inside = here if here is not None and here.token == run.token else None
            again = request.headers.get(_RETRIED, "0") not in ("", "0")
            call = await run.arrivals.call(name, inputs, inside, again=again, preceding=preceding)
            unread = functools.partial(run.arrivals.unread, name, inputs, call)
        if call.outcome is not Outcome.OK:
            code = _REFUSED.get(call.outcome, str(call.outcome))
            raise RequestError(422, f"{name} has no answer ({call.outcome}): {call.detail}", None, code)
        outputs = _whole(inputs, call.outputs)
        key = digest(name, inputs, outputs, call.repeat) + secrets.token_hex(4)
        body = stream(asked, key, outputs) if asked.stream else write(asked, key, outputs)
        return Answer(200, body, unread=unread)

    async def _outside(self, name: str, inputs: Mapping[str, Any]) -> Call:
        try:
            return await self.outside().call(name, inputs)
        except StopRun as error:
            raise RequestError(503, str(error), None, "unavailable") from error

    def _components(self, run: Scope | None) -> Mapping[str, Component]:
        """The agents that a request may be for."""
        components = self.outside().components if run is None else run.recorder.components
        return {name: component for name, component in components.items() if component.route is not None}

    def _models(self, request: Request, name: str | None, run: Scope | None) -> Answer:
        """The models' names that agents may send, in the form of OpenAI's list of models."""
        if request.method != "GET":
            raise RequestError(405, f"{request.method} {request.path[:200]}: send GET")
        names = list(dict.fromkeys(route.model for route in _routes(self._components(run)).values()))
        rows = {model: {"id": model, "object": "model", "created": 0, "owned_by": "optimas_jax"} for model in names}
        if name is None:
            return Answer(200, {"object": "list", "data": [*rows.values()]})
        if name not in rows:
            raise _unknown(name, self._components(run))
        return Answer(200, rows[name])


async def _listens(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether another event loop takes work within ``_PATIENCE``."""
    heard: concurrent.futures.Future[None] = concurrent.futures.Future()
    loop.call_soon_threadsafe(heard.set_result, None)
    try:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.shield(asyncio.wrap_future(heard))
    except TimeoutError:
        return False
    return True


def _held_up() -> RequestError:
    return RequestError(
        409,
        f"the event loop of the run did not take this request within {_PATIENCE:g} s: the program holds it up by a "
        "call that blocks, such as one that waits for this answer; make the program a plain function, or make the "
        "call by asyncio.to_thread",
        None,
        "held_up",
    )


def find_run(request: Request) -> Scope | None:
    """The run that a request belongs to; None outside of all runs.

    Raises:
      RequestError: the request names a run that has ended, comes from a component or a metric, or may belong to several
        runs.
    """
    if request.headers.get(ORIGIN) == origin():
        raise RequestError(
            400,
            "the models of this process are asked at its own proxy, which would go on without end: OPENAI_BASE_URL or "
            "config.server.base_url names the proxy; give that address to the agent alone, and the address of the "
            "models to this process",
            None,
            "own_proxy",
        )
    running = running_programs()
    path = _PATH.fullmatch(request.path)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    token = path["token"] if path is not None else None
    if token is None and key.startswith(RUN_MARK):
        token = key
    if token is not None:
        if token not in running:
            raise _ended()
        return running[token]
    try:
        here = current_scope()
    except ProgramError as error:
        raise RequestError(409, f"{error}; ask for the agent in the program itself", None, "not_in_program") from None
    if here is not None:  # if its run has ended, this task ends, too
        return here
    if is_beside():
        raise RequestError(
            409,
            "a metric asked for an agent: agents belong to the program; give a judge its own client",
            None,
            "metric",
        )
    if len(running) > 1:
        raise RequestError(
            409,
            f"{len(running)} runs are in flight, and this request does not say which one it belongs to: give the agent "
            "the base URL of its run, optimas_jax.base_url(), start threads by asyncio.to_thread, or declare "
            "optimas_jax.program(alone=True), whose runs go one at a time",
            None,
            "which_run",
        )
    return next(iter(running.values()), None)


def choose(components: Mapping[str, Component], asked: Asked, headers: Mapping[str, str]) -> str:
    """The agent that a request is for.

    Raises:
      RequestError: no agent takes the request, or several do.
    """
    routes = {name: route for name, route in _routes(components).items() if route.model == asked.model}
    if not routes:
        raise _unknown(asked.model, components)
    first = asked.inputs["messages"][0]
    system = first["content"] if first["role"] == "system" else ""
    fitting = [
        name
        for name, route in routes.items()
        if route.is_rule
        and system.startswith(route.prefix)
        and all(headers.get(header) == value for header, value in route.headers.items())
    ]
    fitting = fitting or [name for name, route in routes.items() if not route.is_rule]
    if len(fitting) == 1:
        return fitting[0]
    rules = "; ".join(f"{name}: {route}" for name, route in routes.items())
    head = f"its system message begins {system[:60]!r}" if system else "it has no system message"
    problem = f"{' and '.join(fitting)} both take it" if fitting else "none of them takes it"
    raise RequestError(
        404,
        f"several agents send the model {asked.model!r}, and {problem} ({head}): tell them apart by agent(when=...), a "
        f"beginning of the system message or headers. Their rules: {rules}",
        "model",
        "model_not_found",
    )


def _routes(components: Mapping[str, Component]) -> dict[str, Route]:
    return {name: component.route for name, component in components.items() if component.route is not None}


def _unknown(model: str, components: Mapping[str, Component]) -> RequestError:
    agents = "; ".join(f"{name}: {route}" for name, route in _routes(components).items())
    has = f"there are {agents}" if agents else "there is none here"
    message = (
        f"no agent sends the model {model[:200]!r}; {has}: declare it by optimas_jax.agent, and name it to the program"
    )
    return RequestError(404, message, "model", "model_not_found")


def _ended() -> RequestError:
    agents = sorted({name for run in running_programs().values() for name in _routes(run.recorder.components)})
    has = f"; runs in flight have the agents {', '.join(agents)}" if agents else "; no run is in flight"
    return RequestError(410, f"the run that this request belongs to has ended{has}", None, "run_ended")


def _whole(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Outputs with all fields. Outputs that no model wrote may lack ``ids`` and ``finish``: they are filled in."""
    calls = outputs.get("calls", ())
    finish = outputs.get("finish") or ("tool_calls" if calls else "stop")
    ids = outputs.get("ids", ())
    ids = ids if len(ids) == len(calls) else call_ids(inputs, calls)
    return {"text": outputs.get("text", ""), "calls": calls, "ids": ids, "finish": finish}


def failed(error: RequestError) -> Answer:
    """The answer to a refused request."""
    return Answer(error.status, error.to_json(), NO_RETRY)
