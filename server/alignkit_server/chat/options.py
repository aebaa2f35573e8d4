"""The options of a completion request that may reach the engine, with their limits; all others are refused.

An engine is shared: options that could slow it down are limited, and unknown options are refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alignkit_server.chat.structured import check_schema, check_structured
from alignkit_server.errors import ApiError, shorten

MAX_SEQUENCES = 4096
"""Limit of prompts times `n` if the engine's own limit, which is far lower, is unknown."""
MAX_LOGPROBS = 20
MAX_TOOLS = 128

Check = Callable[[str, Any], None]


def _at_most(most: int) -> Check:
    def check(param: str, value: Any) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool) and value > most:
            raise _refused(param, f"expected at most {most:,}, found {shorten(value)}")

    return check


def _entries(most: int, length: int | None = None) -> Check:
    """A check for at most `most` entries, with at most `length` characters each if they are text."""

    def check(param: str, value: Any) -> None:
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list | dict):
            return  # the engine refuses it
        if len(entries) > most:
            raise _refused(param, f"expected at most {most:,} entries, found {len(entries):,}")
        if length and any(isinstance(entry, str) and len(entry) > length for entry in entries):
            raise _refused(param, f"expected at most {length:,} characters each")

    return check


def _format(param: str, value: Any) -> None:
    """Check `response_format`; OpenAI nests the schema one level down, and a structural tag holds several."""
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


_SAMPLING: dict[str, Check | None] = {
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "seed": None,
    "frequency_penalty": None,
    "presence_penalty": None,
    "repetition_penalty": None,
    "stop": _entries(16, 256),
    "stop_token_ids": _entries(64),
}
"""Options of sampling and of an answer's end that completions and responses share."""

_WITHOUT_EFFECT: dict[str, Check | None] = {
    "user": None,
    "metadata": None,
    "store": None,
    "service_tier": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
}
"""OpenAI's options that have no effect here."""

OPTIONS: dict[str, Check | None] = {
    "model": None,
    "messages": None,
    "prompt": None,
    "suffix": None,
    "stream": None,
    "stream_options": None,
    "echo": None,
    # sampling
    **_SAMPLING,
    "length_penalty": None,
    "logit_bias": _entries(1024),
    "allowed_token_ids": None,
    "bad_words": _entries(64, 256),
    # amount and end of the output
    "n": None,
    "best_of": None,
    "use_beam_search": None,
    "max_tokens": None,
    "max_completion_tokens": None,
    "min_tokens": None,
    "ignore_eos": None,
    "include_stop_str_in_output": None,
    "truncate_prompt_tokens": None,
    "truncation_side": None,
    # information about tokens
    "logprobs": _at_most(MAX_LOGPROBS),
    "top_logprobs": _at_most(MAX_LOGPROBS),
    "prompt_logprobs": _at_most(MAX_LOGPROBS),
    "logprob_token_ids": _entries(128),
    "return_token_ids": None,
    "return_tokens_as_token_ids": None,
    "skip_special_tokens": None,
    "spaces_between_special_tokens": None,
    # chat template
    "add_generation_prompt": None,
    "continue_final_message": None,
    "add_special_tokens": None,
    "documents": _entries(64),
    "chat_template_kwargs": _template_options,
    "reasoning_effort": None,
    "include_reasoning": None,
    "thinking_token_budget": None,
    # form of the answer
    "response_format": _format,
    "structured_outputs": check_structured,
    "tools": _tools,
    "tool_choice": None,
    "parallel_tool_calls": None,
    **_WITHOUT_EFFECT,
    "verbosity": None,
    "modalities": None,
}
"""Option name -> check; None if the engine checks the option itself, or if it costs nothing."""


def _text_format(param: str, value: Any) -> None:
    """`text` of a response; its format holds the schema."""
    if isinstance(value, dict) and value.get("format") is not None:
        _format(f"{param}.format", value["format"])


def _functions(param: str, value: Any) -> None:
    """`tools` of a response: functions, which the client runs. The others would run in the engine."""
    for number, tool in enumerate(value if isinstance(value, list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            place = f"{param}[{number}].type"
            raise _refused(
                place, f"expected 'function', since the service runs no tools, found {shorten(kind)}"
            )
    _tools(param, value)


def _never(why: str) -> Check:
    def check(param: str, value: Any) -> None:
        if value:
            raise ApiError(400, f"{param} cannot be set: {why}.", param=param)

    return check


RESPONSES: dict[str, Check | None] = {
    "model": None,
    "input": None,
    "instructions": None,
    "stream": None,
    "stream_options": None,
    **_SAMPLING,
    "max_output_tokens": None,
    "top_logprobs": _at_most(MAX_LOGPROBS),
    "include": _entries(16, 256),
    "chat_template_kwargs": _template_options,
    "reasoning": None,
    "text": _text_format,
    "structured_outputs": check_structured,
    "tools": _functions,
    "tool_choice": None,
    "parallel_tool_calls": None,
    "max_tool_calls": None,
    "truncation": None,
    **_WITHOUT_EFFECT,
    "background": _never("responses are answered at once"),
    "previous_response_id": _never("no response is stored; send the turns before in `input`"),
    "conversation": _never("no conversation is stored; send the turns before in `input`"),
}
"""Supported parameters of /v1/responses, as OPTIONS has those of completions."""
MOST_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
REFUSED = {
    "chat_template": "messages are rendered with the model's own template",
    "prompt_embeds": "prompts are text or token ids",
    "kv_transfer_params": "it is internal to the engine",
    "ec_transfer_params": "it is internal to the engine",
    "vllm_xargs": "it is internal to the engine",
    "mm_processor_kwargs": "only text is supported",
    "media_io_kwargs": "only text is supported",
    "request_id": "the service assigns ids",
    "priority": "clients cannot choose it",
    "cache_salt": "each project has its own",
}
"""Options that are refused with a specific reason; null is allowed, as for all options."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The demand of a request on an engine: sequences, and maximum tokens per sequence (None: the model's length)."""

    sequences: int
    tokens: int | None
    structured: bool
    """Whether the engine must compile a schema, pattern or grammar first."""


def check_options(body: dict[str, Any], options: Mapping[str, Check | None] = OPTIONS) -> Demand:
    """Refuse (400) options that are internal, unknown or out of range; return the demand of the others."""
    for name, value in body.items():
        if value is None:
            continue
        if name in REFUSED:
            raise ApiError(400, f"{name} cannot be set: {REFUSED[name]}.", param=name)
        if name not in options:
            shown = shorten(name)
            raise ApiError(
                400,
                f"Unknown parameter: {shown}; docs/service.md lists the supported parameters.",
                param=name[:80],
                code="unknown_parameter",
            )
        check = options[name]
        if check is not None:
            check(name, value)
    sequences = _prompts(body.get("prompt")) * max(_whole(body, "n", 1), _whole(body, "best_of", 1))
    if sequences > MAX_SEQUENCES:
        raise _refused("n", f"expected at most {MAX_SEQUENCES:,} sequences (number of prompts times n)")
    given = [body[name] for name in MOST_TOKENS if body.get(name) is not None]
    tokens = max(filter(lambda value: isinstance(value, int), given), default=None)
    if tokens is None and "prompt" in body:
        tokens = 16  # the engine's default, like OpenAI's
    return Demand(sequences, tokens, _is_structured(body))


def _prompts(prompt: object) -> int:
    """The number of prompts: one for a text or a list of token ids, else the length of the list."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _whole(body: dict[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    return value if isinstance(value, int) and value > 0 else default


def _is_structured(body: dict[str, Any]) -> bool:
    format_ = body.get("response_format")
    if isinstance(body.get("text"), dict):
        format_ = body["text"].get("format")
    plain = not isinstance(format_, dict) or format_.get("type") == "text"
    return not plain or body.get("structured_outputs") is not None or bool(body.get("tools"))


def _refused(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}.", param=param, code="invalid_value")
