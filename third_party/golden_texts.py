"""The texts behind ``tests/golden``: 1,000 varied strings from a seed, chats, and prompts to continue."""

from __future__ import annotations

import random

_SENTENCES = """
The capital of France is Paris, and its currency is the euro (EUR).
Mr. O'Brien wouldn't say whether he'd seen the film; they're sure he hadn't.
In 1969, at 20:17 UTC, Apollo 11 landed on the Moon with 2 astronauts aboard.
Which of the two countries has the larger population, Chad or Niger?
WE'LL SEE WHAT IT'S WORTH, SHE'D SAID -- I'VE NO IDEA.
Please send the invoice (no. 2024/0815-B) to accounts@example.com by 31.12.2024!
The reaction 2 H₂ + O₂ → 2 H₂O releases 483.6 kJ/mol at 25 °C.
“Curly quotes,” he said, ‘don’t break tokenizers’ — or do they… really?
Visit https://example.org/a/b?c=1&d=%20#frag, or http://[::1]:8080/.
Le cœur a ses raisons que la raison ne connaît point ; où ça ?
Straße, Übermut und Größe: ein süßer Käse für 3,50 €.
¿Dónde está el niño? ¡Aquí, señor! Año nuevo, vida nueva.
O coração não vê, mas a avó já pôs três pães à mesa.
Zażółć gęślą jaźń; pchnąć w tę łódź jeża lub ośm skrzyń fig.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Şişli'de yağmurlu bir gün, İstanbul'un ışıkları söndü.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Ο ταχύς αλεπούς πηδάει πάνω από το σκύλο. Τι ώρα είναι;
צפן הוא שיטה להסתרת מידע; מה השעה עכשיו?
الطقس جميل اليوم، أليس كذلك؟ نعم، ٢٥ درجة.
یک روز خوب برای یادگیری می‌خواهم.
हिन्दी में लिखा हुआ एक वाक्य, जिसमें १२३ अंक हैं।
আমি বাংলায় গান গাই, আমি বাংলার গান গাই।
தமிழ் மொழி மிகவும் பழமையானது.
ภาษาไทยไม่มีช่องว่างระหว่างคำ
Tiếng Việt có nhiều dấu: ằ, ẵ, ợ, ữ.
日本語の文章には漢字とひらがなとカタカナが混ざります。
今天天气很好，我们去公园散步吧！价格是１２３元。
한국어 문장은 띄어쓰기가 있습니다. 그렇죠?
საქართველოს დედაქალაქი თბილისია.
Հայաստանի մայրաքաղաքը Երևանն է։
አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።
""".strip().splitlines()

_CODE = [
    "def f(x: int) -> int:\n    return x ** 2 if x >= 0 else -x  # comment\n",
    "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i] << 3;\n}\n",
    '{"name": "Zoë", "tags": ["a", "b"], "n": 1e-05, "ok": true, "none": null}',
    "SELECT country, COUNT(*) FROM t WHERE x <> 'it''s' GROUP BY 1 HAVING COUNT(*) > 10;",
    "<div class=\"row\"><a href='#x'>A&nbsp;B</a><!-- note --></div>",
    "$ ls -la | grep -v '^d' | awk '{print $9}' > out.txt 2>&1",
    r"\begin{align} \int_0^\infty e^{-x^2}\,dx &= \frac{\sqrt{\pi}}{2} \end{align}",
    'fn main() {\n    let v: Vec<u8> = vec![0u8; 16];\n    println!("{:?}", &v[1..]);\n}',
    "@jax.jit\ndef step(s, b):\n\n    g = jax.grad(loss)(s.params, b)\n\n\n    return s\n",
    "0xDEADBEEF 0b1010 1_000_000 3.14e+10 .5 5. -7 1,234,567.89 v1.2.3-rc4",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n- [x] done\n  - [ ] not\n\n```python\nx=1\n```",
    "snake_case camelCase PascalCase SCREAMING_SNAKE kebab-case __dunder__ x1y2z3",
]

_CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "’re", "'x", "'", "''", "n't", "'d've"]
_BLANKS = [
    " ",
    "  ",
    "   ",
    "    ",
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r",
    " \n",
    "\n ",
    "\t\n \n",
    "\x0b",
    "\x0c",
]
_BLANKS += ["\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\u200b", "\ufeff", "\u202f"]
_EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇫🇷", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "❤️", "✈️", "🧑🏿‍🚀", "1️⃣", "🫠", "☃", "♞", "🤷‍♀️", "🀄", "©️"]
_NUMBERS = [
    "½",
    "²",
    "Ⅷ",
    "①",
    "٣",
    "४",
    "๕",
    "７",
    "㊿",
    "௧",
    "〇",
    "一",
    "𝟙",
    "৩",
    "⑽",
    "₇",
    "¾",
    "0",
    "12",
    "2024",
    "007",
    "3.5",
]
_LOOK_ALIKES = [
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<repo_name>", "<filename>", "<gh_stars>", "<empty_output>",
    "<jupyter_text>", "<|im_end", "|im_end|>", "< |im_end|>", "<|im_end|>\n<|im_start|>system\n", "<|IM_END|>", "<s>",
    "</s>", "[INST]", "<|eot_id|>", "<think>", "<|im_<|im_end|>end|>", "<unk>",
]  # fmt: skip
# First and last code points of stretches that have been assigned for long, so that every Unicode table agrees.
_SCRIPTS = [
    (0x20, 0x7E), (0xA1, 0xFF), (0x100, 0x17F), (0x250, 0x2AF), (0x300, 0x33F), (0x391, 0x3A1), (0x3B1, 0x3C9),
    (0x410, 0x44F), (0x531, 0x556), (0x5D0, 0x5EA), (0x621, 0x63A), (0x905, 0x939), (0x985, 0x98C), (0xB85, 0xB8A),
    (0xE01, 0xE3A), (0x10D0, 0x10F0), (0x1200, 0x1246), (0x1780, 0x17B3), (0x1E00, 0x1EFF), (0x2010, 0x2027),
    (0x2030, 0x205E), (0x20A0, 0x20BF), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2500, 0x257F), (0x2600, 0x26FF),
    (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E), (0x10400, 0x1044F),
    (0x13000, 0x1342E), (0x1D400, 0x1D454), (0x1F300, 0x1F320), (0x1F600, 0x1F64F), (0x20000, 0x2A6D6),
]  # fmt: skip
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~§¶·…—–«»‹›„“”‘’¿¡、。！？・"


def strings(count: int = 1000) -> list[str]:
    """``count`` different strings, the same at every call: first fixed ones, then mixtures of everything."""
    rng = random.Random(20240101)
    fixed = ["", *_SENTENCES, *_CODE, *_BLANKS, *_EMOJI, *_NUMBERS, *_LOOK_ALIKES]
    fixed += ["".join(map(chr, range(1, 32))), "\x7f", "a" * 200, " " * 81, "\n" * 33, "=" * 77, "9" * 40, "ab " * 50]
    words = [word for sentence in _SENTENCES for word in sentence.split()]

    def script() -> str:
        first, last = rng.choice(_SCRIPTS)
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 8)))

    makers = [
        lambda: rng.choice(words),
        lambda: rng.choice(words) + rng.choice(_CONTRACTIONS),
        lambda: rng.choice(_BLANKS) * rng.randint(1, 4),
        lambda: rng.choice(_EMOJI),
        lambda: rng.choice(_NUMBERS),
        lambda: str(rng.randint(0, 10 ** rng.randint(1, 12))),
        lambda: "".join(rng.choices(_PUNCTUATION, k=rng.randint(1, 6))),
        lambda: rng.choice(_LOOK_ALIKES),
        lambda: rng.choice(_CODE)[rng.randint(0, 20) :][: rng.randint(1, 40)],
        script,
    ]
    out = dict.fromkeys(fixed)  # in order, each once
    while len(out) < count:
        parts = [rng.choice(makers)() for _ in range(rng.randint(1, 9))]
        out[rng.choice(["", " ", " ", "\n"]).join(parts)] = None
    return list(out)[:count]


_SYSTEM = "You answer in one short sentence."
CHATS = [
    [{"role": "user", "content": "What is the capital of Peru?"}],
    [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "Hello!  \n"}],
    [
        {"role": "system", "content": ""},
        {"role": "user", "content": "  1 + 1 = ?\n\n"},
        {"role": "assistant", "content": "It's 2."},
        {"role": "user", "content": "Und auf Deutsch? 日本語でも、12 回。"},
    ],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "{{ messages }} {% raw %} <b>&amp;</b> \\n 'quoted' \"double\""}],
]

_DOCUMENT = (
    "Burkina Faso is a landlocked country in Western Africa. Its capital is Ouagadougou, its currency is the West "
    "African CFA franc (XOF), and its neighbours are Mali, Niger, Benin, Togo, Ghana and Ivory Coast.\n"
)


def _user(text: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


# Messages of a chat, or plain text.
PROMPTS: list[str | list[dict[str, str]]] = [
    _user("What is the capital of Norway?"),
    _user("Name three fruits.", _SYSTEM),
    _user(_DOCUMENT + "\nWhat is the currency of Burkina Faso?", "Answer with a name only."),
    _user("Write a haiku about rain."),
    _user("Translate to French: The cat sleeps on the chair."),
    _user("What is 17 + 25? Think step by step."),
    _user("Rewrite the question as a search query: Which river flows through Vienna?"),
    [*_user("My name is Ada."), {"role": "assistant", "content": "Hello Ada!"}, *_user("What is my name?")],
    _user("Summarise in five words: " + _DOCUMENT),
    _user("¿Cuál es la capital de España?"),
    "The quick brown fox",
    "Once upon a time, in a small village by the sea,",
    "Q: What is the largest planet?\nA: Jupiter\nQ: What is the smallest planet?\nA:",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5,",
    "import numpy as np\n\nx = np.",
    "The first law of thermodynamics states that",
    _DOCUMENT + "Question: Which region is Burkina Faso in?\nAnswer:",
    "Dear Sir or Madam,\n\nI am writing to",
    "List of countries in Europe:\n- France\n- Germany\n-",
]
