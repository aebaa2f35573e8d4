"""The canary: verifies that an engine serves a trained model, by comparing log-probs with the trainer's per token.

vLLM loads an adapter whose module names do not match without an error, and then answers as the base model. A
successful request therefore proves nothing; equal numbers do.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from alignkit.redaction import scrub_paths
from alignkit_server.engines.errors import CanaryError, EngineError

__all__ = ["CanaryError", "CanaryReport", "check"]

REQUEST_SECONDS = 120.0
UNMOVED = 0.1
"""An engine whose log-probs moved by less than this fraction of the trained shift answers as the base model."""
"""Timeout of a request; the first request to an adapter also loads it."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Maximum allowed differences between two computations of the same log-probs, in nats."""

    maximum: float
    mean: float
    visible: float
    """Minimum shift from base to adapter, in nats, above which the engine must show a shift as well."""


FULL_PRECISION = Tolerance(maximum=0.05, mean=0.01, visible=0.001)
HALF_PRECISION = Tolerance(maximum=0.35, mean=0.08, visible=0.35)
EIGHT_BITS = Tolerance(maximum=2.0, mean=0.5, visible=2.0)
"""Of weights and activations rounded to FP8.

Rounding as vLLM's fp8_per_channel does, emulated on a CPU with SmolLM2-135M, moved the log-probs of four answers by
0.12 to 0.36 nats on average, and one token's by 1.4 at most.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest and mean absolute difference of two lists of log-probs, in nats."""

    maximum: float
    mean: float

    @classmethod
    def between(cls, left: Sequence[float], right: Sequence[float]) -> "Difference":
        gaps = [abs(a - b) for a, b in zip(left, right, strict=True)]
        if not all(math.isfinite(gap) for gap in gaps):
            return cls(math.inf, math.inf)
        return cls(max(gaps), sum(gaps) / len(gaps))

    def within(self, tolerance: Tolerance) -> bool:
        return self.maximum <= tolerance.maximum and self.mean <= tolerance.mean

    def __str__(self) -> str:
        return f"at most {self.maximum:.2g}, {self.mean:.2g} on average"


@dataclass(frozen=True, slots=True)
class OverBase:
    """The effect of an adapter on its base model, measured by the trainer and by the engine."""

    base: Difference
    """The engine's base model compared with the trainer's."""
    trained_shift: Difference
    """The trainer's adapter compared with the start of training: the change by training."""
    served_shift: Difference
    """The engine's adapter compared with the engine's base: the part of that change that is served."""

    def __str__(self) -> str:
        moved = f"shift by training: {self.trained_shift}, shift when served: {self.served_shift}"
        return f"(base model: {self.base}); {moved}"


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """The result of a canary check; differences are of log-probs per completion token, in nats."""

    tokens: int
    adapter: Difference
    """The engine's adapter, or fully trained model, compared with the trainer's."""
    tolerance: Tolerance
    over_base: "OverBase | None"
    """The effect of an adapter; None if all weights were trained, because the engine then has no base model."""

    @property
    def conclusive(self) -> bool:
        """Whether training changed enough to tell the adapter from the base model."""
        return self.over_base is None or self.over_base.trained_shift.maximum > self.tolerance.visible

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return asdict(self) | {"conclusive": self.conclusive}

    def details(self) -> str:
        """All the differences, for the message of a check that failed."""
        trained = f"{self.tokens} tokens; log-probs differ from the trainer's by {self.adapter}"
        return f"{trained} {self.over_base}" if self.over_base else trained

    def __str__(self) -> str:
        largest = f"{self.adapter.maximum:.0e}".replace("e-0", "e-").replace("e+00", "")
        told = f"vLLM answers as trained ({self.tokens} tokens, differences ≤ {largest})"
        if self.conclusive:
            return told
        return f"{told}; training changed the answers too little to tell the model from its base"


def check(
    endpoint: str,
    *,
    base_model: str | None,
    model_name: str,
    canary: dict[str, Any],
    engine_dtype: str = "float32",
    quantized: bool = False,
) -> CanaryReport:
    """Compare the engine at `endpoint` with the trainer's numbers in `canary` (a job's canary.json).

    `base_model` is None if the engine has no base model because it serves merged weights; the trainer's numbers of
    the base then take its place. The strict tolerances apply if trainer and engine both use float32, the widest to
    weights that the engine has `quantized`. Raises CanaryError if the engine does not
    answer as trained, EngineError if it does not answer at all.
    """
    prompt, completion, trained_base, trained = _parts(canary)
    over_base = None
    with httpx.Client(base_url=endpoint, trust_env=False, timeout=REQUEST_SECONDS) as client:
        served = _logprobs(client, model_name, prompt, completion)
        if trained_base is not None:
            start = canary.get("start_logprobs") or trained_base
            served_base = _logprobs(client, base_model, prompt, completion) if base_model else trained_base
            over_base = OverBase(
                base=Difference.between(served_base, trained_base),
                trained_shift=Difference.between(trained, start),
                served_shift=Difference.between(served, served_base),
            )
    full = canary.get("dtype") == "float32" and engine_dtype == "float32"
    report = CanaryReport(
        tokens=len(completion),
        adapter=Difference.between(served, trained),
        tolerance=EIGHT_BITS if quantized else FULL_PRECISION if full else HALF_PRECISION,
        over_base=over_base,
    )
    if (complaint := _complaint(report)) is not None:
        raise CanaryError(f"{complaint}: {report.details()}")
    return report


def _complaint(report: CanaryReport) -> str | None:
    tolerance, over_base = report.tolerance, report.over_base
    if over_base is not None and not over_base.base.within(tolerance):
        return "vLLM's base model differs from the one that was trained"
    if over_base is not None and report.conclusive and over_base.served_shift.maximum == 0:
        return "vLLM answers as the base model: the adapter has no effect"
    if report.adapter.within(tolerance):
        return None
    if over_base is None:
        return "vLLM's model does not answer as trained"
    if over_base.served_shift.maximum < over_base.trained_shift.maximum * UNMOVED:
        return "vLLM answers as the base model"
    return "vLLM's adapter does not answer as trained"


def _parts(canary: dict[str, Any]) -> tuple[list[int], list[int], list[float] | None, list[float]]:
    """Prompt, completion, and its log-probs by the trainer: those of the base, if any, and those of the result."""
    try:
        prompt, completion = list(canary["prompt_token_ids"]), list(canary["completion_token_ids"])
        base = None if canary["base_logprobs"] is None else list(canary["base_logprobs"])
        adapter = list(canary["adapter_logprobs"])
    except (KeyError, TypeError) as error:
        raise CanaryError(f"the trainer's canary cannot be read: {error} is missing") from error
    known = len(adapter if base is None else base)
    if not prompt or not completion or not len(completion) == known == len(adapter):
        raise CanaryError(
            "the trainer's canary cannot be used: expected a prompt and one log-prob for each completion token, "
            f"found {len(prompt)} prompt tokens, {len(completion)} completion tokens, {known} and {len(adapter)} "
            "log-probs"
        )
    return prompt, completion, base, adapter


def _logprobs(client: httpx.Client, model: str, prompt: list[int], completion: list[int]) -> list[float]:
    """The engine's log-prob of each completion token. vLLM bypasses its prefix cache for such a request."""
    tokens = prompt + completion
    request = {"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    try:
        response = client.post("/v1/completions", json=request)
    except httpx.HTTPError as error:
        raise EngineError(
            "engine_failed", f"vLLM did not answer the canary request for {model}: {error}"
        ) from error
    try:
        body = response.json()
        if response.is_error:
            message = scrub_paths(str(body["error"]["message"]))
            raise CanaryError(f"vLLM refused the canary request for {model}: {message}")
        entries = body["choices"][0]["prompt_logprobs"][len(prompt) :]
        return [float(entry[str(token)]["logprob"]) for entry, token in zip(entries, completion, strict=True)]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CanaryError(
            f"vLLM's answer to the canary request for {model} has no log-probs (status {response.status_code})"
        ) from error
