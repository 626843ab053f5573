"""Texts that hold names of files, layers and classes, as they can be shown anywhere."""

SPACES = "\n\t\N{NO-BREAK SPACE}"


def printable(text: str) -> str:
    """Replace what is no text, such as escape sequences, by question marks."""
    return "".join(c if c.isprintable() or c in SPACES else "?" for c in text)


def one_line(text: str) -> str:
    """Printable text without line breaks: a name cannot begin a line and pass for a result."""
    return " ".join(printable(text).split("\n"))
