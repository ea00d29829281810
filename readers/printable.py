"""Text of others, as names of files and classes are, in a line of ours."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escapes what is not a character to see: a line break, or what a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
