"""Images in the fields of a call: recorded with their content, sent as parts of a message, shown as ``[image]``."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from pathlib import Path

_KINDS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Image:
    """An image as the value of a field.

    Attributes:
      image_url: a web address, or the content as a ``data:`` URL.
      sha256: digest of the content, or of the address.

    Raises:
      FileNotFoundError, OSError: the file cannot be read.
      ValueError: the content is no image of a known format.

    Example:
      ```python
      look = oj.prompt("What does the photo show?")

      async def describe(photo):
          return await look(photo=oj.Image(photo))
      ```
    """

    image_url: str
    sha256: str

    def __init__(self, source: str | Path | bytes):
        """``source``: a file, its content, or a URL (``https:``, ``data:``).

        Raises:
          ValueError: for content that is no PNG, JPEG, GIF or WebP.
          OSError: for a file that cannot be read.
        """
        if isinstance(source, str) and re.match(r"https?://|data:image/", source):
            url, content = source, source.encode()
        else:
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
            kind = next((name for name, begins in _KINDS.items() if begins.match(content)), None)
            if kind is None:
                where = f"content of {len(content)} bytes" if isinstance(source, bytes) else str(source)
                raise ValueError(f"{where} begins with {content[:8]!r}: PNG, JPEG, GIF and WebP are read")
            url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        object.__setattr__(self, "image_url", url)
        object.__setattr__(self, "sha256", hashlib.sha256(content).hexdigest())

    def __repr__(self) -> str:
        return f"Image({self.image_url[:40]!r}..., sha256={self.sha256[:8]}...)"
