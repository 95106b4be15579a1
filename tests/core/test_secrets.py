"""Secrets are masked in whatever form other texts quote them, and however often they are quoted."""

import html
import itertools
import json
import time
import urllib.parse

import pytest

from optimas_jax.core.text.json_text import shown
from optimas_jax.core.text.secrets import MASK, redact

CORE = "sk-PLANTED1234567890abcdefPLANTED"
KEYS = [
    CORE,
    f"{CORE}\nsecond-line-of-the-key",
    f"{CORE}\tmore",
    f"{CORE}'\"`",
    f"it's {CORE}'",
    f"{CORE}\\n\\",
    f"\\\\{CORE}\\\\'",
    f"{CORE}[/red]<b>&amp;%20",
    f"{CORE}é中文😀",
    f"{CORE}\x1b[31m",
    f"é中😀'\"\\[&<> é{CORE}",
]
QUOTES = {
    "repr": repr,
    "json": json.dumps,
    "JSON in Unicode": lambda text: json.dumps(text, ensure_ascii=False),
    "bytes": lambda text: repr(text.encode()),
    "escape": lambda text: text.encode("unicode_escape").decode(),
    "markup": lambda text: text.replace("[", "\\["),
    "beside quotes": lambda text: f"x\"'{text}'\"",
}
ONCE = {
    "html": html.escape,
    "address": lambda text: urllib.parse.quote(text, safe=""),
    "form": urllib.parse.quote_plus,
    "header": lambda text: text.encode().decode("latin-1"),
    "header in JSON": lambda text: json.dumps(text.encode().decode("latin-1")),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_masked_in_every_form(key, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", key)
    for quotes in itertools.product(QUOTES.values(), repeat=3):
        text = key
        for quote in quotes:
            text = quote(text)
            assert CORE not in redact(text) and MASK in redact(text), text
    for quote in ONCE.values():
        assert CORE not in redact(quote(key)), quote(key)


@pytest.mark.parametrize("key", KEYS)
def test_it_takes_time_in_proportion(key, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", key)
    began = time.process_time()
    for text in ("\\" * 1_000_000, (key[:-1] + "\\" * 50) * 20_000, "&amp;" * 200_000, "%25" * 300_000):
        redact(text)
    assert time.process_time() - began < 10


def test_a_value_in_a_message_is_masked_before_it_is_cut(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", CORE)
    assert CORE[:8] not in shown("x" * 50 + CORE)
