"""A user's module, as written before it knew this package."""

WORDS = "Say it in one word."
COUNT = 2
calls = []


def shorten(text, count=1):
    calls.append(text)
    return " ".join(text.split()[:count]) + f" ({WORDS})"


async def answer(text):
    return {"text": shorten(text, COUNT), "number": int(COUNT)}
