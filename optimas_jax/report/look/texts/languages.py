"""The language of a text, as far as its writing system and its function words show it."""

from __future__ import annotations

import unicodedata
from collections import Counter

from optimas_jax.report.look.texts.sorts import words_of


def scripts_of(text: str) -> frozenset[str]:
    """Writing systems with at least a fifth of the letters: ``LATIN``, ``CYRILLIC``."""
    letters = [char for char in text[:2000] if char.isalpha()]
    names = Counter("LATIN" if char.isascii() else unicodedata.name(char, "?").split()[0] for char in letters)
    total = names.total()
    return frozenset(name for name, count in names.items() if 5 * count >= total and count > 1)


_FUNCTION_WORDS = {
    "en": "the of and is in to that it was for on are with as this be at by an which from or what who not",
    "de": "der die das und ist in den von zu mit sich des auf für nicht ein eine dem im es auch wurde hat sind antwort",
    "fr": "le la les de des et est un une en du dans que qui pour sur pas par au avec ce il elle sont réponse",
    "es": "el la los las de y es un una en del que por con para no se al lo su está son respuesta",
    "it": "il la lo gli le di e è un una in del della che per con non si al dei sono risposta",
    "pt": "o a os as de e é um uma em do da que por com para não se ao dos são resposta",
    "nl": "de het een en is in van op te dat die voor met niet zijn aan er om ook antwoord",
    "pl": "i w na z do jest nie się to że jak od po za przez są odpowiedź",
    "tr": "ve bir bu için ile da de ne olarak daha çok olan değil cevap başkenti",
    "id": "yang dan di ini itu dengan untuk dari adalah pada tidak dalam ke jawaban",
}
_LANGUAGES = {name: frozenset(words.split()) for name, words in _FUNCTION_WORDS.items()}


def language_of(text: str) -> str:
    """The language by its writing system or, in Latin letters, by its function words; "" where neither shows it."""
    scripts = scripts_of(text)
    if scripts and "LATIN" not in scripts:
        return "+".join(sorted(scripts))
    words = words_of(text)
    hits = {name: sum(word in known for word in words) for name, known in _LANGUAGES.items()}
    first, second = sorted(hits.values(), reverse=True)[:2]
    return max(hits, key=lambda name: hits[name]) if first >= 2 and first > second and 6 * first >= len(words) else ""
