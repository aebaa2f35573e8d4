"""Samples from an OpenAI-compatible server such as vLLM; prompts are sent as token ids to /v1/completions."""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from alignkit.sampling.sampler import SamplingError

CONCURRENCY = 16
ATTEMPTS = 4
TIMEOUT_S = 600.0


class ServerSampler:
    """Samples from `model` on the server at `url` (with or without /v1); by default, from its only model.

    `tokenizer`, the model's own, tokenises answers if the server does not return token ids. `ends` are the tokens
    that end an answer; default: the tokenizer's. The server need not know them. Use it as a context manager, or call
    `close`. Raises SamplingError if the server cannot be reached or does not have the model.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        model: str | None = None,
        concurrency: int = CONCURRENCY,
        timeout_s: float = TIMEOUT_S,
        ends: Sequence[int] = (),
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._tokenizer = tokenizer
        self._ends = list(ends or [token for token in (tokenizer.eos_token_id,) if token is not None])
        self._concurrency = concurrency
        self._http = httpx.Client(
            base_url=self.url, timeout=timeout_s, limits=httpx.Limits(max_connections=concurrency)
        )
        self.model = self._served(model)

    def __enter__(self) -> "ServerSampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _served(self, wanted: str | None) -> str:
        names = [str(entry["id"]) for entry in self._json("GET", "/v1/models")["data"]]
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted not in names:
            expected = f"a model named {wanted!r}" if wanted else "one model, or sampler_model to select one"
            raise SamplingError(
                f"the sampling server {self.url}: expected {expected}, found {', '.join(names) or 'none'}"
            )
        return wanted

    def load_adapter(self, name: str, folder: Path) -> None:
        """Serve the LoRA adapter in `folder` as `name` and sample from it; names must not be reused (vLLM only)."""
        self._json("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        self.model = name

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
    ) -> list[list[int]]:
        """Sample answers; see Sampler. Equal prompts become one request with `n` answers. Runs in parallel."""
        counts = Counter(tuple(prompt) for prompt in prompts)
        bodies = [
            {
                "model": self.model,
                "prompt": list(prompt),
                "n": count,
                "temperature": temperature,
                "top_p": top_p,
                "max_tokens": max_tokens,
                "seed": seed + index,
                # vLLM's: no defaults from the model's folder; token ids, because text may tokenise differently
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "return_token_ids": True,
                "stop_token_ids": self._ends,
            }
            for index, (prompt, count) in enumerate(counts.items())
        ]
        with ThreadPoolExecutor(self._concurrency) as pool:
            answers = list(pool.map(self._answers, bodies))
        queues = {prompt: iter(drawn) for prompt, drawn in zip(counts, answers, strict=True)}
        return [next(queues[tuple(prompt)]) for prompt in prompts]

    def _answers(self, body: dict[str, Any]) -> list[list[int]]:
        choices = self._json("POST", "/v1/completions", body).get("choices", [])
        if len(choices) != body["n"]:
            raise SamplingError(
                f"the sampling server {self.url}: expected {body['n']} answers, found {len(choices)}"
            )
        return [self._ids(choice) for choice in choices]

    def _ids(self, choice: dict[str, Any]) -> list[int]:
        if choice.get("token_ids") is not None:
            return [int(token) for token in choice["token_ids"]]
        ids: list[int] = self._tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
        return [*ids, *self._ends[:1]] if choice.get("finish_reason") == "stop" else ids

    def _json(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer; retries after broken connections and status 429 or 5xx."""
        for attempt in itertools.count(1):
            try:
                response = self._http.request(verb, path, json=body)
                problem = (
                    "" if response.is_success else f"status {response.status_code}: {response.text[:300]}"
                )
                passing = response.status_code == 429 or response.status_code >= 500
            except httpx.TransportError as error:
                problem, passing = f"{type(error).__name__} {error}".strip(), True
            if not problem:
                break
            if not passing or attempt == ATTEMPTS:
                raise SamplingError(f"the sampling server {self.url} did not answer {path}: {problem}")
            time.sleep(0.25 * 2**attempt)
        try:
            return response.json() if response.content.strip().startswith((b"{", b"[")) else {}
        except ValueError as error:
            raise SamplingError(
                f"the sampling server {self.url}{path}: expected JSON, found {error}"
            ) from None
