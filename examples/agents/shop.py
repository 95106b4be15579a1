"""What the agents of this folder do: they tell prices. Rows, a tool, and a metric that says what was wrong."""

PRICES = {"apple": 3, "bread": 5, "cheese": 9, "dates": 7, "eggs": 4, "figs": 8}
ROWS = [
    {"question": f"{greeting}! What do {count} {item} cost?", "wanted": f"{count * price} euros"}
    for greeting in ("Hello", "Hi", "Good day")
    for count in (2, 3, 4)
    for item, price in PRICES.items()
]


def look_up(item: str) -> str:
    """Looks up the price of one item, such as apple."""
    return f"{PRICES[item]} euros" if item in PRICES else f"there is no {item}; there are {', '.join(PRICES)}"


def grade(example, outputs):
    right = outputs == example["wanted"]
    return float(right), "" if right else "Answer with the sum alone, such as 12 euros."
