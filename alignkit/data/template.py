"""The model's chat template at work: the prompt as it is served, an answer after it, and what is left out of either.

An answer follows exactly the ids of the prompt that serving renders, wherever the template allows it: then what is
trained is what the model is asked for. Every difference is a note on the sequence, or a refusal where an answer would
be trained without a part of it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import Message
from alignkit.data.nodes import printable
from alignkit.errors import DataError

NO_TEMPLATE = (
    "no chat template, so conversations cannot be rendered: use an instruct model, "
    "or put a chat_template.jinja into the model's folder"
)
NO_CALLS = (
    "the answer calls a tool, which the model's chat template does not write, so it would not be trained: "
    "use a model whose template has tools"
)
NO_END = "the chat template writes no end token after the answer, so the model is not trained to stop there"
EMPTY = "the answer is empty once the model's chat template has rendered it, so there is nothing to train"
KEPT_REASONING = "the chat template leaves out the answer's reasoning, which is trained all the same"

_REASONING_KEYS = {
    key: re.compile(rf"[.'\"]{key}\b") for key in ("reasoning_content", "thinking", "reasoning")
}
"""How chat templates call what a model thinks before it answers."""
_THINK = re.compile(r"</?think>")
_BLOCK = re.compile(r"\s*<think>\s*(.*?)\s*</think>\s*(.*)", re.DOTALL)
"""An answer that begins with its reasoning."""
_PLACEHOLDER = "placeholder7f3a9c"
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class RenderedAnswer:
    """An answer after a prompt, in token ids and text."""

    context: list[int]
    """The ids before the answer; those of the served prompt, unless `missing` says what they lack."""
    ids: list[int]
    """The answer's own ids, its end token and what the template writes after it included."""
    missing: str = ""
    """The end of the served prompt that the template leaves out before the answer."""
    notes: tuple[str, ...] = ()


class Chat:
    """A tokenizer's chat template, with the tools of one conversation."""

    def __init__(self, tokenizer: Any, tools: list[dict[str, Any]] | None) -> None:
        self.tokenizer = tokenizer
        self._tools = tools
        self._template = str(tokenizer.chat_template)
        self._writes: bool | None = None
        self._ids: dict[str, list[int]] = {}

    def text(self, messages: list[Message], *, prompt: bool = False) -> str:
        """A conversation, or with `prompt` one that the model is to go on with.

        Raises DataError where the template refuses it, or there is none.
        """
        if not self.tokenizer.chat_template:
            raise DataError(f"the model's tokenizer has {NO_TEMPLATE}")
        try:
            text: str = self.tokenizer.apply_chat_template(
                [self._as_template_reads(message) for message in messages],
                tools=self._tools,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as error:  # a template is a program of the model's, and may raise anything
            raise DataError(f"the model's chat template refuses the conversation: {error}") from error
        return text

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered text, as transformers makes them."""
        if text not in self._ids:
            self._ids[text] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self._ids[text]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def answer(self, prompt: list[Message], answer: list[Message]) -> RenderedAnswer:
        """The answer after the prompt as it is served.

        Raises DataError where the template leaves out a part of the answer, or all of it.
        """
        served, whole = self.text(prompt, prompt=True), self.text(prompt + answer)
        notes = self.context_notes(prompt, served)
        shared = shared_length(served, whole)
        left_out = missing_part(answer, whole[shared:])
        if left_out is not None:  # an answer may begin as the served prompt ends
            left_out = missing_part(answer, whole[shared_length(self.text(prompt), whole) :])
        if left_out is not None:
            whole, notes = self._verbatim(prompt, answer, served, left_out), [*notes, KEPT_REASONING]
        found = self._split(served, whole)
        last = self.end_of_turn(found.ids)
        if not any(self.without_special([token]).strip() for token in found.ids[:last]):
            raise DataError(EMPTY)
        if not self.is_special(found.ids[last - 1]):
            notes.append(NO_END)
        if found.missing:
            notes.append(
                f"the model is served after '{printable(found.missing, _SHOWN)}', which the chat template leaves out "
                "before the answer"
            )
        return RenderedAnswer(found.context, found.ids, found.missing, tuple(notes))

    def _split(self, served: str, whole: str) -> RenderedAnswer:
        """The ids of `whole`, apart where the served prompt ends."""
        context, ids = self.ids(served), self.ids(whole)
        shared = shared_length(context, ids)
        if shared == len(context):
            return RenderedAnswer(context, ids[shared:])
        if whole.startswith(served):  # tokens merge across the boundary
            answer = self.ids(whole[len(served) :])
            if self.decode(context + answer) == self.decode(ids):
                return RenderedAnswer(context, answer)
        return RenderedAnswer(context[:shared], ids[shared:], self.decode(context[shared:]))

    def _verbatim(
        self, prompt: list[Message], answer: list[Message], served: str, left_out: tuple[str, str]
    ) -> str:
        """The served prompt and an answer that the template would render without its reasoning.

        Made as the template renders any other answer, with this one in its place. Raises DataError where the
        template leaves out something else, or such a place cannot be found.
        """
        kind, part = left_out
        refused = DataError(
            NO_CALLS
            if kind == CALL
            else f"the model's chat template leaves out {kind} of the answer, '{printable(part, _SHOWN)}', so it "
            "would not be trained: use a model whose template has it"
        )
        if (
            kind != REASONING
            or len(answer) > 1
            or "tool_calls" in answer[0]
            or "</think>" not in self._template
        ):
            raise refused
        content = str(self._as_template_reads(answer[0])["content"])
        before, place, after = self.text([*prompt, {"role": "assistant", "content": _PLACEHOLDER}]).partition(
            _PLACEHOLDER
        )
        if not place or not (served.startswith(before) or before.startswith(served)):
            raise refused
        opened = served[len(before) :] if served.startswith(before) else ""
        if opened and not content.startswith(opened):
            if not content.lstrip().startswith(opened.strip()):
                raise refused
            content = opened + content.lstrip().removeprefix(opened.strip()).lstrip("\n")
        return before + content + after

    def _as_template_reads(self, message: Message) -> Message:
        """A message with its reasoning under the key that the template reads, or in its content as `<think>`."""
        reasoning, content = message.get("reasoning_content"), message.get("content")
        if (
            reasoning is None
            and "</think>" in str(content)
            and message["role"] == "assistant"
            and self._writes_reasoning()
        ):
            block = _BLOCK.fullmatch(str(content))
            if block is not None:
                reasoning, content = block.groups()
        if reasoning is None:
            return message
        rest = {name: value for name, value in message.items() if name != "reasoning_content"} | {
            "content": content
        }
        key = self._reasoning_key()
        if key is not None:
            return {**rest, key: reasoning}
        if "</think>" in self._template:
            return {**rest, "content": f"<think>\n{reasoning}\n</think>\n\n{content}"}
        return rest

    def _reasoning_key(self) -> str | None:
        """The key under which the template reads reasoning."""
        return next((key for key, found in _REASONING_KEYS.items() if found.search(self._template)), None)

    def _writes_reasoning(self) -> bool:
        """Whether the template writes the reasoning of a last answer that is given under a key of its own."""
        if self._writes is None:
            said = {
                "role": "assistant",
                "content": _PLACEHOLDER,
                "reasoning_content": f"{_PLACEHOLDER} thinks",
            }
            try:
                text = self.text([{"role": "user", "content": "Hi"}, said])
            except DataError:
                text = ""
            self._writes = self._reasoning_key() is not None and text.count(_PLACEHOLDER) == 2
        return self._writes

    def context_notes(self, prompt: list[Message], served: str) -> list[str]:
        """Notes of what the template leaves out of the prompt, in serving as in training."""
        text = _squeezed(served)
        notes = []
        for role in dict.fromkeys(message["role"] for message in prompt):
            mine = [message for message in prompt if message["role"] == role]
            if not all(_is_in(part, text) for message in mine for part in _context_parts(message)):
                notes.append(f"the chat template leaves out a part of the prompt, of a {role} message")
        names = [str(tool.get("function", tool).get("name", "")) for tool in self._tools or []]
        if not all(_is_in(name, text) for name in names if name):
            notes.append("the chat template leaves out the tools")
        return notes

    def end_of_turn(self, ids: list[int]) -> int:
        """Where an answer ends: after its end token, without the blank that a template writes behind it."""
        last = len(ids)
        while last > 0 and not self.tokenizer.decode([ids[last - 1]]).strip():
            last -= 1
        return last if last > 0 and self.is_special(ids[last - 1]) else len(ids)

    def is_special(self, token: int) -> bool:
        """Whether a token is one of the tokenizer's special ones."""
        return bool(self.tokenizer.decode([token], skip_special_tokens=True) == "")

    def without_special(self, ids: list[int]) -> str:
        """The text of token ids without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


REASONING, TEXT, CALL = "the reasoning", "the text", "a call of a tool"


def missing_part(answer: Iterable[Message], text: str) -> tuple[str, str] | None:
    """The first part of an answer that its rendered text lacks, as (kind, part); None where all is there.

    Blanks do not count: templates trim what they are given. Parts are looked for in their order.
    """
    rest = _squeezed(text)
    for message in answer:
        for kind, part in _parts(message):
            at = next((at for form in _forms(part) if (at := rest.find(form)) >= 0), -1)
            if kind == CALL:  # every template quotes arguments in its own way
                if at < 0 and not all(word in rest for word in re.findall(r"\w+", part)):
                    return kind, part
                continue
            if at < 0:
                return kind, part
            rest = rest[at:].removeprefix(_squeezed(part))
    return None


def _parts(message: Message) -> Iterator[tuple[str, str]]:
    """What a template must write of a message."""
    if message.get("reasoning_content"):
        yield REASONING, str(message["reasoning_content"])
    *thoughts, said = _THINK.split(str(message.get("content") or ""))
    yield from ((REASONING, thought) for thought in thoughts if thought.strip())
    if said.strip():
        yield TEXT, said
    for call in message.get("tool_calls", ()):
        function = call.get("function", call)
        yield CALL, str(function["name"])
        yield from ((CALL, leaf) for leaf in _leaves(function.get("arguments")) if leaf.strip())


def _context_parts(message: Message) -> Iterator[str]:
    """What a template should write of a message before the answer; earlier reasoning is left out by design."""
    said = _THINK.split(str(message.get("content") or ""))[-1]
    if said.strip():
        yield said
    yield from (str(call.get("function", call)["name"]) for call in message.get("tool_calls", ()))


def _leaves(value: Any) -> Iterator[str]:
    """The keys and texts inside a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


def _is_in(part: str, squeezed: str) -> bool:
    return any(form in squeezed for form in _forms(part))


def _forms(part: str) -> list[str]:
    """A text as it stands, and as JSON writes it inside quotes; without blanks."""
    written = (json.dumps(part, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    return list(dict.fromkeys(map(_squeezed, (part, *written))))


def _squeezed(text: str) -> str:
    return "".join(text.split())


def shared_length(one: Any, other: Any) -> int:
    """How many items, or characters, two sequences both begin with."""
    least = min(len(one), len(other))
    if one[:least] == other[:least]:
        return least
    low, high = 0, least  # the first `low` agree, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low
