"""Draws the pictures of the documents, each in light and in dark: python docs/tools/figures.py

A picture is a function from a palette to SVG elements. Nothing is measured here: the pictures say how the method works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "figures"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
Palette = Mapping[str, str]
PALETTES: Mapping[str, Palette] = {
    "light": {
        "text": "#1b1f24",
        "soft": "#57606a",
        "line": "#afb8c1",
        "box": "#f3f5f8",
        "tuned": "#dbe7ff",
        "accent": "#2459c4",
        "good": "#1a7f4b",
        "bad": "#b4442c",
    },
    "dark": {
        "text": "#e8ebef",
        "soft": "#a7b0bb",
        "line": "#58616c",
        "box": "#20262e",
        "tuned": "#1f3564",
        "accent": "#8ab0ff",
        "good": "#5fce96",
        "bad": "#f08a72",
    },
}


def text(x: float, y: float, words: str, fill: str, size: int = 14, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size}" text-anchor="{anchor}"{weight}>{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str, radius: float = 6) -> str:
    corner = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
    return f'<rect {corner} fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'


def bar(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}"/>'


def path(points: str, stroke: str, *, width: float = 1.5, arrow: bool = False, dashed: bool = False) -> str:
    more = ' marker-end="url(#arrow)"' * arrow + ' stroke-dasharray="4 4"' * dashed
    return f'<path d="{points}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{more}/>'


def dot(x: float, y: float, fill: str, radius: float = 4.5) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}"/>'


def component(x: float, y: float, name: str, colours: Palette, tuned: bool = False, width: float = 62) -> list[str]:
    """A component of the system, 32 high; the tuned one stands out."""
    fill, stroke = (colours["tuned"], colours["accent"]) if tuned else (colours["box"], colours["line"])
    words = text(x + width / 2, y + 21, name, colours["text"], 14, "middle", tuned)
    return [box(x, y, width, 32, fill, stroke), words]


def heading(x: float, number: int, words: str, below: Sequence[str], colours: Palette) -> list[str]:
    """The title of a panel with its explanation, two lines."""
    title = text(x, 34, f"{number}  {words}", colours["text"], 18, bold=True)
    return [title, *(text(x, 56 + 19 * i, line, colours["soft"], 14) for i, line in enumerate(below))]


OUTPUTS = (("Paris", 0.9), ("It is Paris, I think", 0.45), ("Lyon", 0.1), ("the capital", 0.2))


def group(x: float, y: float, colours: Palette) -> list[str]:
    """One component's outputs on one input, each followed to the end of the system; 250 wide."""
    drawn = [
        *component(x, y, "input", colours),
        path(f"M{x + 62} {y + 16} H{x + 84}", colours["soft"], arrow=True),
        *component(x + 92, y, "answer", colours, True, 70),
        path(f"M{x + 162} {y + 16} H{x + 184}", colours["soft"], arrow=True),
        *component(x + 192, y, "rest", colours, width=58),
    ]
    drawn.append(text(x + 146, y + 52, "metric", colours["soft"], 13))
    for i, (words, reward) in enumerate(OUTPUTS):
        at = y + 72 + 31 * i
        colour = colours["good"] if reward == max(one for _, one in OUTPUTS) else colours["soft"]
        drawn += [
            text(x, at + 5, words, colours["text"]),
            bar(x + 146, at - 6, 104 * reward, 12, colour),
            path(f"M{x + 146} {at - 10} V{at + 10}", colours["line"]),
        ]
    return drawn


POINTS = ((0.12, 0.15), (0.22, 0.08), (0.3, 0.3), (0.38, 0.5), (0.5, 0.38), (0.6, 0.66), (0.72, 0.58), (0.86, 0.9))


def local_reward(x: float, y: float, colours: Palette) -> list[str]:
    """Local score against global reward, a dot an output; 170 wide."""
    width, height = 170, 150
    axes = path(f"M{x} {y} V{y + height} H{x + width}", colours["line"])
    rising = path(f"M{x + 8} {y + height - 8} L{x + width - 6} {y + 8}", colours["accent"], dashed=True)
    dots = [dot(x + u * width, y + height - v * height, colours["accent"]) for u, v in POINTS]
    return [
        axes,
        rising,
        *dots,
        text(x + width, y + height + 20, "local reward", colours["soft"], 13, "end"),
        text(x + 6, y + 4, "metric of the whole", colours["soft"], 13),
    ]


ROUNDS = (
    ((0.62, 0.7, 0.35, 0.5, 0.2, 0.42), 3),
    ((0.66, 0.72, 0.55), 2),
    ((0.64, 0.76), 1),
)


def race(x: float, y: float, colours: Palette) -> list[str]:
    """Rounds of a race: proposals as bars, of which the better half goes on; 190 wide."""
    drawn = []
    for i, (scores, kept) in enumerate(ROUNDS):
        left, best = x + 76 * i, sorted(scores)[-kept:]
        drawn += [
            bar(left + 9 * j, y + 150 - 130 * s, 7, 130 * s, colours["accent"] if s in best else colours["line"])
            for j, s in enumerate(scores)
        ]
        drawn.append(text(left, y + 170, f"{4 * 2**i} inputs", colours["soft"], 13))
        if i:
            drawn.append(path(f"M{left - 20} {y + 75} H{left - 8}", colours["soft"], arrow=True))
    return drawn


DIFFERENCES = (-0.25, -0.1, 0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.45, 0.6)


def gate(x: float, y: float, colours: Palette) -> list[str]:
    """Differences on validation examples, their mean with its interval, and the verdict; 170 wide."""
    zero, scale = x + 60, 140
    drawn = [path(f"M{zero} {y} V{y + 118}", colours["line"]), text(zero, y - 6, "0", colours["soft"], 13, "middle")]
    for i, value in enumerate(DIFFERENCES):
        colour = colours["good"] if value > 0 else colours["bad"] if value < 0 else colours["soft"]
        drawn.append(dot(zero + scale * value, y + 8 + 7.5 * i, colour, 3.5))
    low, mean, high = (zero + scale * value for value in (0.05, 0.175, 0.31))
    at = y + 112
    drawn += [
        path(f"M{low} {at} H{high} M{low} {at - 5} V{at + 5} M{high} {at - 5} V{at + 5}", colours["text"], width=2),
        dot(mean, at, colours["text"], 5),
        text(x, y + 147, "accepted,", colours["good"], 15, bold=True),
        text(x, y + 166, "or refused with its reason", colours["soft"], 13),
    ]
    return drawn


def method(colours: Palette) -> list[str]:
    """From a group of outputs to the gate."""
    panels = (24, 316, 532, 770)
    said = (
        ("Group", ("Outputs of one component, each", "followed to the metric of the whole.")),
        ("Local reward", ("Learns their order, at the", "price of one forward pass.")),
        ("Race", ("It ranks proposals; a few", "whole runs correct it.")),
        ("Gate", ("Whole runs, paired, decide", "on examples kept for it.")),
    )
    drawn = [part for i, (name, below) in enumerate(said) for part in heading(panels[i], i + 1, name, below, colours)]
    drawn += group(panels[0], 104, colours)
    drawn += local_reward(panels[1], 118, colours)
    drawn += race(panels[2], 118, colours)
    drawn += gate(panels[3], 118, colours)
    for x in (294, 508, 748):
        drawn.append(path(f"M{x - 8} 200 H{x + 4}", colours["accent"], width=2.5, arrow=True))
    back = f"M{panels[3] + 60} 298 V324 H{panels[1] + 86} V312"
    drawn.append(path(back, colours["accent"], width=2, arrow=True))
    middle = (panels[1] + panels[3]) / 2 + 72
    drawn.append(text(middle, 344, "what was labelled trains the local reward further", colours["soft"], 14, "middle"))
    return drawn


STAGES = (
    ("collect", "candidate outputs, with", "the reward of the whole"),
    ("train", "a local reward for", "each component"),
    ("optimize", "propose, label, race,", "gate, adapt; again"),
    ("confirm", "once, on examples that", "no gate has seen"),
    ("evaluate", "before and after, on", "the same test examples"),
)


def stages(colours: Palette) -> list[str]:
    """The stages of a run, and what each leaves in the folder."""
    files = ("groups/", "checkpoints/", "proposals.jsonl", "best/", "results.json")
    drawn = []
    for i, ((name, *below), file) in enumerate(zip(STAGES, files, strict=True)):
        x = 20 + 192 * i
        drawn += component(x, 24, name, colours, name == "optimize", 150)
        drawn += [text(x, 80 + 19 * j, line, colours["soft"]) for j, line in enumerate(below)]
        drawn.append(text(x, 128, file, colours["accent"], 13))
        if i:
            drawn.append(path(f"M{x - 34} 40 H{x - 10}", colours["soft"], arrow=True))
    tape = "tape.sqlite: every answer that was paid for, so that the same command resumes for nothing"
    drawn.append(text(20, 166, tape, colours["text"]))
    drawn.append(path("M20 146 H960", colours["line"]))
    return drawn


def followed(colours: Palette) -> list[str]:
    """How one other output of a call is followed to the end: what is kept, what is made again."""
    names = ("rewrite", "search", "hint", "answer")
    drawn = [text(20, 30, "A run, as it was recorded", colours["text"], 15, bold=True)]
    drawn.append(text(20, 126, "The same run with another output of one call", colours["text"], 15, bold=True))
    for row, y in enumerate((44, 140)):
        for i, name in enumerate(names):
            x = 20 + 160 * i
            changed = row == 1 and i == 1
            drawn += component(x, y, name, colours, changed, 100)
            if i:
                drawn.append(path(f"M{x - 60} {y + 16} H{x - 8}", colours["soft"], arrow=True))
        score = "0.4" if row == 0 else "0.8"
        drawn.append(path(f"M600 {y + 16} H646", colours["soft"], arrow=True))
        drawn.append(text(662, y + 22, f"metric {score}", colours["text"], 15, bold=True))
    for i, words in enumerate(("from the record", "the other output", "made again", "made again")):
        colour = colours["accent"] if i == 1 else colours["soft"]
        drawn.append(text(70 + 160 * i, 196, words, colour, 13, "middle"))
    return drawn


PICTURES: Mapping[str, tuple[int, int, str, Callable[[Palette], list[str]]]] = {
    "method": (
        980,
        356,
        "From a group of outputs to a local reward, a race of proposals and a gate on whole runs",
        method,
    ),
    "stages": (980, 184, "The stages of a run and what each leaves in its folder", stages),
    "followed": (800, 214, "A recorded run, and the same run with another output of one call", followed),
}


def svg(name: str, colours: Palette) -> str:
    """One picture as a file's text."""
    width, height, title, draw = PICTURES[name]
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colours["accent"]}"/></marker></defs>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="{FONT}">'
    return "\n".join([head, f"<title>{title}</title>", arrow, *draw(colours), "</svg>", ""])


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in PICTURES:
        for shade, colours in PALETTES.items():
            (FOLDER / f"{name}-{shade}.svg").write_text(svg(name, colours), encoding="utf-8")


if __name__ == "__main__":
    main()
