"""Rendering with the model's chat template: the prompt as served, the answer after it, and checks for losses.

Wherever the template allows it, an answer follows exactly the ids of the served prompt, so that training matches
serving. Every difference becomes a note on the sequence. An answer that would be trained with a part missing is
refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.data.messages import Message
from alignkit.data.nodes import printable
from alignkit.data.rendered_parts import CALL, REASONING, context_parts, is_in, missing_part, squeezed
from alignkit.errors import DataError

NO_TEMPLATE = (
    "no chat template, so conversations cannot be rendered: use an instruct model, "
    "name a template in chat_template, such as llama3, or put a chat_template.jinja into the model's folder"
)
NO_CALLS = (
    "the answer calls a tool, which the model's chat template does not render, so it would not be trained: "
    "use a model whose template supports tools"
)
NO_END = "the chat template writes no end token after the answer, so the model is not trained to stop there"
EMPTY = "the answer is empty after rendering with the model's chat template, so there is nothing to train"
KEPT_REASONING = "the chat template omits the answer's reasoning, but it is trained anyway"

_REASONING_KEYS = {
    key: re.compile(rf"[.'\"]{key}\b") for key in ("reasoning_content", "thinking", "reasoning")
}
"""Keys that chat templates use for a model's reasoning before an answer."""
CONTROL = "a message's text contains {token}, which the model reads as a control token, not as text"
_LOOPS_OVER_CONTENT = re.compile(r"for \w+ in \w+(\.content|\[['\"]content['\"]\])|content['\"\]]*\[0\]")
"""A template that reads content as a list of parts, as those of vision-language models do."""
_BLOCK = re.compile(r"\s*<think>\s*(.*?)\s*</think>\s*(.*)", re.DOTALL)
"""An answer that starts with its reasoning."""
_PLACEHOLDER = "placeholder7f3a9c"
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class RenderedAnswer:
    """An answer after a prompt, as token ids."""

    context: list[int]
    """The ids before the answer: those of the served prompt, except for the part in `missing`."""
    ids: list[int]
    """The answer's ids, including its end token and what the template writes after it."""
    missing: str = ""
    """The end of the served prompt that the template omits before the answer."""
    notes: tuple[str, ...] = ()


class Chat:
    """A tokenizer's chat template, with the tools of one conversation."""

    def __init__(self, tokenizer: Any, tools: list[dict[str, Any]] | None) -> None:
        self.tokenizer = tokenizer
        self._tools = tools
        self._template = str(tokenizer.chat_template)
        self._writes: bool | None = None
        self._parts: bool | None = None
        self._ids: dict[str, list[int]] = {}

    def text(self, messages: list[Message], *, prompt: bool = False) -> str:
        """The rendered conversation; with `prompt`, followed by the start of the assistant turn to generate.

        Raises DataError if the template refuses the conversation, or is missing.
        """
        if not self.tokenizer.chat_template:
            raise DataError(f"the model's tokenizer has {NO_TEMPLATE}")
        read = [self._as_template_reads(message) for message in messages]
        return self._render(list(map(_in_parts, read)) if self._takes_parts() else read, prompt=prompt)

    def _render(self, messages: list[Message], *, prompt: bool = False) -> str:
        """The messages rendered as they are given. Raises DataError if the template refuses them."""
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=self._tools, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template is code that comes with the model, and may raise anything
            raise DataError(f"the model's chat template refuses the conversation: {error}") from error
        return text

    def _takes_parts(self) -> bool:
        """Whether the template renders content only as a list of parts, as vLLM then gives it."""
        if self._parts is None:
            said = [{"role": "user", "content": _PLACEHOLDER}]
            self._parts = (
                _LOOPS_OVER_CONTENT.search(self._template) is not None
                and not self._shows(said)
                and self._shows(list(map(_in_parts, said)))
            )
        return self._parts

    def _shows(self, messages: list[Message]) -> bool:
        try:
            return _PLACEHOLDER in self._render(messages)
        except DataError:
            return False

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered text, as transformers computes them."""
        if text not in self._ids:
            self._ids[text] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self._ids[text]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, including special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def answer(self, prompt: list[Message], answer: list[Message]) -> RenderedAnswer:
        """The answer after the prompt as served.

        Raises DataError if the template omits a part of the answer, or all of it.
        """
        served, whole = self.text(prompt, prompt=True), self.text(prompt + answer)
        notes = self.context_notes(prompt, served) + self.control_notes(prompt + answer)
        shared = shared_length(served, whole)
        left_out = missing_part(answer, whole[shared:])
        if left_out is not None:  # an answer may start with the text that ends the served prompt
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
                f"in serving, the answer follows '{printable(found.missing, _SHOWN)}', which the chat template omits "
                "in training"
            )
        return RenderedAnswer(found.context, found.ids, found.missing, tuple(notes))

    def _split(self, served: str, whole: str) -> RenderedAnswer:
        """The ids of `whole`, split at the end of the served prompt."""
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
        """The served prompt followed by an answer whose reasoning the template would omit.

        Renders a placeholder answer with the template and replaces it by this answer. Raises DataError if the
        template omits anything else, or the placeholder cannot be found.
        """
        kind, part = left_out
        refused = DataError(
            NO_CALLS
            if kind == CALL
            else f"the model's chat template omits {kind} of the answer, '{printable(part, _SHOWN)}', so it "
            "would not be trained: use a model whose template supports it"
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
        """The key under which the template reads reasoning, or None."""
        return next((key for key, found in _REASONING_KEYS.items() if found.search(self._template)), None)

    def _writes_reasoning(self) -> bool:
        """Whether the template renders the reasoning of the last answer if it is given under its own key."""
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
        """Notes on the parts of the prompt that the template omits, in serving and training alike."""
        text = squeezed(served)
        notes = []
        for role in dict.fromkeys(message["role"] for message in prompt):
            mine = [message for message in prompt if message["role"] == role]
            if not all(is_in(part, text) for message in mine for part in context_parts(message)):
                notes.append(f"the chat template omits a part of the prompt, in a {role} message")
        names = [str(tool.get("function", tool).get("name", "")) for tool in self._tools or []]
        if not all(is_in(name, text) for name in names if name):
            notes.append("the chat template omits the tools")
        return notes

    def control_notes(self, messages: list[Message]) -> list[str]:
        """Notes on texts that contain a special token, which ends a turn or starts another one there."""
        text = "\n".join(str(message.get("content") or "") for message in messages)
        if "<" not in text and "[" not in text:
            return []
        return [CONTROL.format(token=token) for token in self.tokenizer.all_special_tokens if token in text]

    def end_of_turn(self, ids: list[int]) -> int:
        """The end of an answer: after its end token, without what a template writes after it.

        That is whitespace, and in the last turn of some templates the tokenizer's end token.
        """
        last = self._without_space(ids, len(ids))
        if last == 0 or not self.is_special(ids[last - 1]):
            return len(ids)
        before = self._without_space(ids, last - 1)
        twice = 0 < before < last - 1 and ids[last - 1] == self.tokenizer.eos_token_id
        return before if twice and ids[before - 1] == self._end_before_next_turn() else last

    def _without_space(self, ids: list[int], end: int) -> int:
        """`end`, before any whitespace."""
        while end > 0 and not self.tokenizer.decode([ids[end - 1]]).strip():
            end -= 1
        return end

    def _end_before_next_turn(self) -> int | None:
        """The special token with which the template ends an answer that another turn follows; None without one."""
        said = [{"role": role, "content": _PLACEHOLDER} for role in ("user", "assistant", "user")]
        try:
            parts = self.text(said).split(_PLACEHOLDER)
        except DataError:
            return None
        ids = self.ids(parts[2].lstrip()) if len(parts) == 4 else []
        return ids[0] if ids and self.is_special(ids[0]) else None

    def is_special(self, token: int) -> bool:
        """Whether a token is a special token of the tokenizer."""
        return bool(self.tokenizer.decode([token], skip_special_tokens=True) == "")

    def without_special(self, ids: list[int]) -> str:
        """The text of token ids without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _in_parts(message: Message) -> Message:
    """A message whose text is a list of one part."""
    content = message.get("content")
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def end_of_answer(tokenizer: Any) -> int | None:
    """The special token with which the tokenizer's chat template ends an answer; None if it writes none."""
    chat = Chat(tokenizer, None)
    prompt: list[Message] = [{"role": "user", "content": _PLACEHOLDER}]
    try:
        ids = chat.answer(prompt, [{"role": "assistant", "content": _PLACEHOLDER}]).ids
    except DataError:
        return None
    last = ids[chat.end_of_turn(ids) - 1]
    return last if chat.is_special(last) else None


def ends_first(ends: Sequence[int], tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the one that the chat template writes, then the model's own `ends`."""
    end = end_of_answer(tokenizer)
    return list(ends) if end is None else [end, *(token for token in ends if token != end)]


def shared_length(one: Any, other: Any) -> int:
    """The length of the common prefix of two sequences or strings."""
    least = min(len(one), len(other))
    if one[:least] == other[:least]:
        return least
    low, high = 0, least  # the first `low` agree, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low
