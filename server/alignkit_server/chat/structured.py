"""Limits for what an engine compiles before it answers: schemas, regular expressions, grammars, choices.

The engine compiles for all clients in one place. A compilation of minutes delays every other structured answer,
and does not stop when the client disconnects. These limits count what makes it slow: the size, the repetitions
multiplied out, and the patterns, because each is matched against the whole vocabulary.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from alignkit_server.errors import ApiError

MAX_BYTES = 16 * 2**10
"""Maximum size of a schema, a grammar or all choices together, as JSON."""
MAX_CHOICES = 256
MAX_CHOICE_LENGTH = 1024
MAX_REGEX_LENGTH = 1024
MAX_REPEATED = 10_000
"""Maximum characters of a pattern, or items of a schema, with every repetition written out."""
MAX_PATTERNS = 32
"""Maximum number of parts of one schema that are matched character by character."""
MAX_NODES = 1000
REPEATS = ("maxItems", "minItems", "maxProperties", "minProperties")
LENGTHS = ("maxLength", "minLength")

_QUANTIFIER = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]?", re.DOTALL)


def check_structured(param: str, given: object) -> None:
    """Refuse (400) `structured_outputs` that would take the engine too long to compile."""
    if not isinstance(given, dict):
        raise _refused(param, "expected an object")
    for kind, check in CHECKS.items():
        if given.get(kind) is not None:
            check(f"{param}.{kind}", given[kind])


def check_schema(param: str, given: object) -> None:
    """Refuse (400) a JSON schema, or a structural tag with schemas, that would take too long to compile."""
    if isinstance(given, str):
        _require(param, "bytes", len(given.encode("utf-8", "replace")), MAX_BYTES)
        try:
            given = json.loads(given)
        except ValueError as error:
            raise _refused(param, "expected JSON") from error
    _require(param, "bytes", len(json.dumps(given, ensure_ascii=False)), MAX_BYTES)
    nodes = list(_nodes(given, 1))
    _require(param, "objects and arrays", len(nodes), MAX_NODES)
    patterns = 0
    for node, times in nodes:
        _require(param, "items, with every repetition written out", times, MAX_REPEATED)
        if "pattern" in node:
            check_regex(f"{param}…pattern", node["pattern"])
        patterns += sum(map(node.__contains__, ("pattern", "format", "patternProperties", *LENGTHS)))
        length = max((_count(node.get(name)) for name in LENGTHS), default=0)
        _require(f"{param}…maxLength", "characters", length, MAX_REPEATED)
        named = node.get("patternProperties")
        for pattern in named if isinstance(named, dict) else ():
            check_regex(f"{param}…patternProperties", pattern)
    _require(param, "patterns and lengths of strings", patterns, MAX_PATTERNS)


def check_regex(param: str, given: object) -> None:
    """Refuse (400) a regular expression that is too long with every repetition written out."""
    if not isinstance(given, str):
        raise _refused(param, "expected a string")
    _require(param, "characters", len(given), MAX_REGEX_LENGTH)
    _require(param, "characters, with every repetition written out", written_out(given), MAX_REPEATED)


def written_out(pattern: str) -> int:
    """The approximate length of `pattern` with `{n}` and `{n,m}` replaced by that many copies."""
    sums, last, position = [0], 0, 0
    while position < len(pattern):
        quantifier = _QUANTIFIER.match(pattern, position)
        if quantifier:
            times = max(_number(quantifier[1]), _number(quantifier[2] or ""), 1)
            sums[-1] += last * (times - 1)
            last *= times
            position = quantifier.end()
            continue
        character = pattern[position]
        last, step = 1, 1
        if character == "[":
            inside = _CLASS.match(pattern, position)
            step = len(inside[0]) if inside else 1
        elif character == "\\":
            step = 2
        elif character == "(":
            sums.append(0)
            last = 0
        elif character == ")" and len(sums) > 1:
            last = sums.pop()
        sums[-1] += last
        position += step
    return sum(sums)


def _grammar(param: str, given: object) -> None:
    if not isinstance(given, str):
        raise _refused(param, "expected a string")
    _require(param, "bytes", len(given.encode("utf-8", "replace")), MAX_BYTES)
    times = 1
    for found in _QUANTIFIER.finditer(given):
        times *= max(_number(found[1]), _number(found[2] or ""), 1)
        _require(param, "repetitions, multiplied", times, MAX_REPEATED)


def _choices(param: str, given: object) -> None:
    if not isinstance(given, list):
        raise _refused(param, "expected an array")
    _require(param, "choices", len(given), MAX_CHOICES)
    for choice in given:
        if not isinstance(choice, str):
            raise _refused(param, "expected strings")
        _require(param, "characters of a choice", len(choice), MAX_CHOICE_LENGTH)
    _require(param, "characters of all choices", sum(map(len, given)), MAX_BYTES)


CHECKS = {
    "json": check_schema,
    "structural_tag": check_schema,
    "regex": check_regex,
    "whitespace_pattern": check_regex,
    "choice": _choices,
    "grammar": _grammar,
}


def _nodes(value: Any, times: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects inside `value`, each with the number of times that enclosing objects repeat it."""
    if isinstance(value, dict):
        times *= max(1, *(_count(value.get(name)) for name in REPEATS))
        yield value, times
        for inner in value.values():
            yield from _nodes(inner, times)
    elif isinstance(value, list):
        yield {}, times
        for inner in value:
            yield from _nodes(inner, times)


def _count(value: object) -> int:
    return int(min(value, 10**9)) if isinstance(value, int | float) and value > 0 else 0


def _number(digits: str) -> int:
    return min(int(digits[:9] or 0), 10**9)


def _require(param: str, what: str, found: int, most: int) -> None:
    if found > most:
        raise _refused(param, f"expected at most {most:,} {what}, found {found:,}")


def _refused(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}.", param=param, code="invalid_value")
