"""Types that the forms of a run's files are made of."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, StringConstraints
from typing_extensions import TypedDict

from optimas_jax.core.values import value_from_json

MOST = 10**15  # largest plausible count, tokens or seconds


def _date(text: str) -> str:
    datetime.datetime.fromisoformat(text)
    return text


Count = Annotated[int, Ge(0), Le(MOST)]
Amount = Annotated[float, Ge(0), Le(MOST)]
Date = Annotated[str, AfterValidator(_date)]
Name = Annotated[str, Len(1, 200)]
Interval = Annotated[list[float], Len(2, 2)]
Label = Annotated[str, StringConstraints(pattern=r"^[\w-]{1,100}$")]  # part of a file's name
Index = Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")]
Settings = dict[str, Any]


def _value(data: dict[str, Any]) -> dict[str, Any]:
    value_from_json(data)
    return data


ValueData = Annotated[Settings, AfterValidator(_value)]


class Usage(TypedDict):
    calls: Count
    prompt_tokens: Count
    completion_tokens: Count
    usd: Amount
    seconds: Amount
    system_runs: Count
    component_calls: Count
    tokens: Count
