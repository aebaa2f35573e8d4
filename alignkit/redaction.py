"""Text made safe to show: absolute paths shortened to their last part."""

import re

_ABSOLUTE_PATH = re.compile(
    r"(?:(?<![\w/.~])(?!//)|(?<=file://))~?/(?:[^\s/'\"`:,;()<>\[\]]+/)+([^\s/'\"`:,;()<>\[\]]*)"
)
"""One at the beginning of a word, after a sign, or in a file's URL; the path of any other URL is none."""


def scrub_paths(text: str) -> str:
    """`text` with every absolute path shortened to its last part, so that it reveals nothing about the machine."""
    return _ABSOLUTE_PATH.sub(r"…/\1", text)
