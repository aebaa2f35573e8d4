"""The fixed texts that a chat template puts around turns, found by rendering and proved by rendering."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Conversation = Sequence[tuple[str, str]]
"""(role, content) of each message."""
SYSTEM, USER, ANSWER, NEXT = "zqSystemqz", "zqUserqz", "zqAnswerqz", "zqNextqz"


@dataclass(frozen=True, slots=True)
class Turns:
    """What stands before and after each message of a chat."""

    opening: str
    """At the beginning of each prompt, such as the start token."""
    default: str
    """After it, if there is no system message."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    """Around an earlier answer."""
    prompt: str
    """Where the next answer begins."""
    system: tuple[str, str] | None = None
    """None if the template has no system turns."""
    inside_user: str | None = None
    """Between a system message and the first user message, if both are in one turn."""

    def render(self, messages: Conversation) -> str:
        """The prompt of a conversation, up to where the answer begins."""
        has_system = bool(messages) and messages[0][0] == "system"
        text = self.opening + ("" if has_system else self.default)
        first = ""
        for role, content in messages:
            if role == "system" and self.inside_user is not None:
                first = content + self.inside_user
                continue
            before, after = {
                "system": self.system or ("", ""),
                "user": self.user,
                "assistant": self.assistant,
            }[role]
            text += before + (first if role == "user" else "") + content + after
            first = "" if role == "user" else first
        return text + self.prompt


def turns_of(tokenizer: Any) -> Turns | None:
    """The texts around the turns of the tokenizer's chat template; None if it does more than that."""
    try:
        found = _found(tokenizer)
    except Exception:  # a template may raise anything
        return None
    return found if found is not None and _is_proved(found, tokenizer) else None


def _found(tokenizer: Any) -> Turns | None:
    one = _render(tokenizer, [("user", USER)])
    asked = _render(tokenizer, [("user", USER)], prompt=True)
    pair = _render(tokenizer, [("user", USER), ("assistant", ANSWER)])
    both = _render(tokenizer, [("user", USER), ("assistant", ANSWER), ("user", NEXT)])
    head, user_after = one.split(USER)
    if not asked.startswith(one) or not pair.startswith(one):
        return None
    answer_before, answer_after = pair.removeprefix(one).split(ANSWER)
    between = both.split(ANSWER)[1].split(NEXT)[0]
    if not between.startswith(answer_after):
        return None
    user_before = between.removeprefix(answer_after)
    if not head.endswith(user_before):
        return None
    start = head.removesuffix(user_before)
    prompt = asked.removeprefix(one)
    plain = Turns(start, "", (user_before, user_after), (answer_before, answer_after), prompt)
    return _with_system(plain, tokenizer)


def _with_system(turns: Turns, tokenizer: Any) -> Turns:
    """`turns` with what the template does with a system message; unchanged if it takes none."""
    try:
        before, between = (
            _render(tokenizer, [("system", SYSTEM), ("user", USER)]).split(USER)[0].split(SYSTEM)
        )
    except Exception:  # a template without system messages raises
        return turns
    if before == turns.opening + turns.user[0]:
        return replace(turns, inside_user=between)
    if not between.endswith(turns.user[0]):
        return turns
    start = str(tokenizer.bos_token or "")
    opening = start if start and before.startswith(start) and turns.opening.startswith(start) else ""
    return replace(
        turns,
        opening=opening,
        default=turns.opening.removeprefix(opening),
        system=(before.removeprefix(opening), between.removesuffix(turns.user[0])),
    )


def _is_proved(turns: Turns, tokenizer: Any) -> bool:
    """Whether the turns render several conversations as the template does."""
    long = [("user", "One?"), ("assistant", "Two."), ("user", "{{ Three }}\n\nand four?")]
    chats: list[Conversation] = [long[:1], long]
    if turns.system is not None or turns.inside_user is not None:
        chats += [[("system", "Be brief."), *long[:1]], [("system", "Be brief."), *long]]
    return all(turns.render(chat) == _render(tokenizer, chat, prompt=True) for chat in chats)


def _render(tokenizer: Any, messages: Conversation, *, prompt: bool = False) -> str:
    chat = [{"role": role, "content": content} for role, content in messages]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt))
