"""Draws answers to a conversation: from an OpenAI-shaped endpoint, or with transformers in this process."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from alignkit.data.messages import Message
from alignkit.sampling import SamplingError

CONCURRENCY = 8
TIMEOUT_SECONDS = 600.0
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How answers are drawn."""

    samples: int = 4
    """Answers of a prompt."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    """Maximum length of an answer."""
    seed: int = 0

    def values(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


class Answerer(Protocol):
    """Draws several answers to each conversation."""

    def answer(
        self, conversations: Sequence[Sequence[Message]], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[list[str]]:
        """The answers to each conversation, drawn with its seed. Raises SamplingError."""
        ...


class EndpointAnswerer:
    """Draws from `model` at `url`, by chat. The key is in OPENAI_API_KEY."""

    def __init__(self, url: str, model: str, *, concurrency: int = CONCURRENCY, retries: int = 3) -> None:
        from openai import OpenAI  # saves openai at start-up

        self._url, self._model, self._concurrency = url, model, concurrency
        key = os.environ.get(KEY_VARIABLE) or "none"
        self._client = OpenAI(base_url=url, api_key=key, max_retries=retries, timeout=TIMEOUT_SECONDS)

    def answer(
        self, conversations: Sequence[Sequence[Message]], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[list[str]]:
        """See Answerer. Conversations are asked in parallel."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(
                pool.map(
                    lambda pair: self._answers(pair[0], settings, pair[1]),
                    zip(conversations, seeds, strict=True),
                )
            )

    def _answers(self, messages: Sequence[Message], settings: SamplingSettings, seed: int) -> list[str]:
        """The answers of one conversation; an endpoint that ignores `n` is asked again for what is missing."""
        found: list[str] = []
        for attempt in range(settings.samples):
            found += self._ask(messages, settings, settings.samples - len(found), seed + attempt)
            if len(found) >= settings.samples:
                break
        return found[: settings.samples]

    def _ask(
        self, messages: Sequence[Message], settings: SamplingSettings, count: int, seed: int
    ) -> list[str]:
        from openai import APIStatusError, OpenAIError  # saves openai at start-up

        name = f"the model {self._model} at {self._url}"
        asked: list[Any] = list(messages)
        try:
            answer = self._client.chat.completions.create(
                model=self._model,
                messages=asked,
                n=count,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                seed=seed,
            )
        except APIStatusError as error:
            raise SamplingError(
                f"{name} refused: status {error.status_code}: {error.message[:300]}"
            ) from error
        except (OpenAIError, ValueError) as error:
            raise SamplingError(f"{name} does not answer: {type(error).__name__}: {error}") from error
        try:
            texts = [choice.message.content for choice in answer.choices]
        except (AttributeError, TypeError) as error:
            raise SamplingError(
                f"{name}: expected a chat completion, found {type(answer).__name__}"
            ) from error
        if not texts:
            raise SamplingError(f"{name}: expected {count} answers, found none")
        return [text or "" for text in texts]


class LocalAnswerer:
    """Draws with transformers from the model in `path`, a folder or a hub id. Raises ModelError if it has none."""

    def __init__(self, path: str) -> None:
        import torch  # saves torch at start-up

        from alignkit.data.template import ends_first
        from alignkit.errors import ModelError
        from alignkit.models.loading import ends_of, load_causal_lm
        from alignkit.sampling import LocalSampler

        gpu = torch.cuda.is_available()
        model, self._tokenizer = load_causal_lm(path, "bfloat16" if gpu else "float32", field="MODEL")
        if not self._tokenizer.chat_template:
            raise ModelError(f"MODEL: {path} has no chat template, so conversations cannot be rendered")
        ends = ends_first(ends_of(model, self._tokenizer), self._tokenizer)
        self._sampler = LocalSampler(model.to("cuda") if gpu else model, self._tokenizer, ends=ends)

    def answer(
        self, conversations: Sequence[Sequence[Message]], settings: SamplingSettings, seeds: Sequence[int]
    ) -> list[list[str]]:
        """See Answerer. All answers of the conversations are one request, whose seed is the first's."""
        prompts = [
            self._tokenizer(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True
                ),
                add_special_tokens=False,
            )["input_ids"]
            for messages in conversations
            for _ in range(settings.samples)
        ]
        ids = self._sampler.complete(
            prompts,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            seed=seeds[0],
        )
        texts = [self._tokenizer.decode(one, skip_special_tokens=True) for one in ids]
        count = settings.samples
        return [texts[start : start + count] for start in range(0, len(texts), count)]
