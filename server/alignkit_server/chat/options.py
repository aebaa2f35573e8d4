"""Which options of a completion request reach the engine: those named here, within bounds, and no others.

An engine is shared, so an option that could hold it up is bounded, and one that is not known is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignkit_server.chat.structured import check_schema, check_structured
from alignkit_server.errors import ApiError, shorten

MAX_SEQUENCES = 4096
"""Prompts times `n`: where the engine's own limit, which is far lower, is not known."""
MAX_LOGPROBS = 20
MAX_TOOLS = 128

Check = Callable[[str, Any], None]


def _at_most(most: int) -> Check:
    def check(param: str, value: Any) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool) and value > most:
            raise _refused(param, f"expected at most {most:,}, found {shorten(value)}")

    return check


def _entries(most: int, length: int | None = None) -> Check:
    """At most so many entries, each, where it is text, of at most `length` characters."""

    def check(param: str, value: Any) -> None:
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list | dict):
            return  # the engine's to refuse
        if len(entries) > most:
            raise _refused(param, f"expected at most {most:,} entries, found {len(entries):,}")
        if length and any(isinstance(entry, str) and len(entry) > length for entry in entries):
            raise _refused(param, f"expected at most {length:,} characters each")

    return check


def _format(param: str, value: Any) -> None:
    """`response_format`; the schema is one level down at OpenAI, and a structural tag holds several."""
    if isinstance(value, dict):
        check_schema(param, value)


def _tools(param: str, value: Any) -> None:
    if isinstance(value, list):
        if len(value) > MAX_TOOLS:
            raise _refused(param, f"expected at most {MAX_TOOLS} tools, found {len(value):,}")
        check_schema(param, value)


def _template_options(param: str, value: Any) -> None:
    if not isinstance(value, dict):
        return
    for key in ("chat_template", "tokenize"):
        if key in value:
            place = f"{param}.{key}"
            raise ApiError(400, f"{place} cannot be set: {REFUSED['chat_template']}.", param=place)
    _entries(64, 1024)(param, value)


OPTIONS: dict[str, Check | None] = {
    "model": None,
    "messages": None,
    "prompt": None,
    "suffix": None,
    "stream": None,
    "stream_options": None,
    "echo": None,
    # how tokens are drawn
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "seed": None,
    "frequency_penalty": None,
    "presence_penalty": None,
    "repetition_penalty": None,
    "length_penalty": None,
    "logit_bias": _entries(1024),
    "allowed_token_ids": None,
    "bad_words": _entries(64, 256),
    # how much
    "n": None,
    "best_of": None,
    "use_beam_search": None,
    "max_tokens": None,
    "max_completion_tokens": None,
    "min_tokens": None,
    "ignore_eos": None,
    "stop": _entries(16, 256),
    "stop_token_ids": _entries(64),
    "include_stop_str_in_output": None,
    "truncate_prompt_tokens": None,
    "truncation_side": None,
    # what is said of the tokens
    "logprobs": _at_most(MAX_LOGPROBS),
    "top_logprobs": _at_most(MAX_LOGPROBS),
    "prompt_logprobs": _at_most(MAX_LOGPROBS),
    "logprob_token_ids": _entries(128),
    "return_token_ids": None,
    "return_tokens_as_token_ids": None,
    "skip_special_tokens": None,
    "spaces_between_special_tokens": None,
    # the chat template's
    "add_generation_prompt": None,
    "continue_final_message": None,
    "add_special_tokens": None,
    "documents": _entries(64),
    "chat_template_kwargs": _template_options,
    "reasoning_effort": None,
    "include_reasoning": None,
    "thinking_token_budget": None,
    # the form of the answer
    "response_format": _format,
    "structured_outputs": check_structured,
    "tools": _tools,
    "tool_choice": None,
    "parallel_tool_calls": None,
    # OpenAI's, of which nothing comes here
    "user": None,
    "metadata": None,
    "store": None,
    "service_tier": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "verbosity": None,
    "modalities": None,
}
"""By name; None for what the engine itself checks, or what costs nothing."""
REFUSED = {
    "chat_template": "messages are rendered with the model's own template",
    "prompt_embeds": "prompts are text or token ids",
    "kv_transfer_params": "it is not for clients",
    "ec_transfer_params": "it is not for clients",
    "vllm_xargs": "it is not for clients",
    "mm_processor_kwargs": "only text is served",
    "media_io_kwargs": "only text is served",
    "request_id": "ids are given by the service",
    "priority": "it is not for clients",
    "cache_salt": "each project has its own",
}
"""Options with a reason to tell; null is let through, as for every other."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request takes of an engine: sequences, and the most tokens of each (None: the model's length)."""

    sequences: int
    tokens: int | None
    structured: bool
    """Whether the engine compiles something first."""


def check_options(body: dict[str, Any]) -> Demand:
    """Refuse (400) options that are not for clients, not known or out of bounds; what the others ask for."""
    for name, value in body.items():
        if value is None:
            continue
        if name in REFUSED:
            raise ApiError(400, f"{name} cannot be set: {REFUSED[name]}.", param=name)
        if name not in OPTIONS:
            shown = shorten(name)
            raise ApiError(
                400,
                f"Unknown parameter: {shown}; docs/service.md lists what the engines are asked.",
                param=name[:80],
                code="unknown_parameter",
            )
        check = OPTIONS[name]
        if check is not None:
            check(name, value)
    sequences = _prompts(body.get("prompt")) * max(_whole(body, "n", 1), _whole(body, "best_of", 1))
    if sequences > MAX_SEQUENCES:
        raise _refused("n", f"expected at most {MAX_SEQUENCES:,} sequences, which is prompts times n")
    given = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    tokens = max(filter(lambda value: isinstance(value, int), given), default=None)
    if tokens is None and "prompt" in body:
        tokens = 16  # the engine's default, as OpenAI's
    return Demand(sequences, tokens, _is_structured(body))


def _prompts(prompt: object) -> int:
    """How many prompts there are: a text, a list of token ids, or a list of either."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _whole(body: dict[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    return value if isinstance(value, int) and value > 0 else default


def _is_structured(body: dict[str, Any]) -> bool:
    format_ = body.get("response_format")
    plain = not isinstance(format_, dict) or format_.get("type") == "text"
    return not plain or body.get("structured_outputs") is not None or bool(body.get("tools"))


def _refused(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}.", param=param, code="invalid_value")
