"""Samples with transformers, in batches."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from alignkit.sampling.sampler import SamplingError


class LocalSampler:
    """Samples from the current `model` (a causal LM of transformers, also under peft), in batches of `batch_size`.

    `ends` are the tokens that end an answer; default: those of the model's generation config, else the tokenizer's.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 32, ends: Sequence[int] = ()) -> None:
        self._model = model
        self._batch_size = batch_size
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        own = model.generation_config.eos_token_id
        if own is None:
            own = tokenizer.eos_token_id
        self._ends: list[int] = list(ends) or ([own] if isinstance(own, int) else list(own or []))

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
    ) -> list[list[int]]:
        """Sample answers; see Sampler. Restores the random state and the model's mode."""
        device = next(self._model.parameters()).device
        self._check(prompts, max_tokens)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding
        answers: list[list[int]] = [[] for _ in prompts]
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                for start in range(0, len(order), self._batch_size):
                    batch = order[start : start + self._batch_size]
                    ids = self._generate([prompts[index] for index in batch], temperature, top_p, max_tokens)
                    for index, answer in zip(batch, ids, strict=True):
                        answers[index] = answer
        finally:
            self._model.train(was_training)
        return answers

    def _check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, prompts), default=0)
        if limit is not None and longest + max_tokens > limit:
            raise SamplingError(
                f"expected prompts of at most {limit - max_tokens} tokens, since the model takes {limit} and an "
                f"answer may have {max_tokens}, found one with {longest}"
            )

    def _generate(
        self, prompts: Sequence[Sequence[int]], temperature: float, top_p: float, max_tokens: int
    ) -> list[list[int]]:

        length = max(map(len, prompts))
        padded = [[self._pad] * (length - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = next(self._model.parameters()).device
        # name every processor that changes the distribution: omitted ones are read from the model's folder
        config = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            min_p=None,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=max_tokens,
            pad_token_id=self._pad,
            eos_token_id=self._ends,
        )
        with torch.no_grad():
            out = self._model.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=config,
                synced_gpus=False,  # the caller gathered the weights, and processes draw different numbers of answers
            )
        return [self._until_end(answer) for answer in out[:, length:].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        end = next((index + 1 for index, token in enumerate(ids) if token in self._ends), len(ids))
        return ids[:end]
