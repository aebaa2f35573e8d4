"""Text on a terminal."""


def visible(text: str) -> str:
    """`text` with all control characters escaped, so that a terminal shows them instead of obeying them."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1]
        for character in text
    )
