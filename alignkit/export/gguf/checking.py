"""Compares a GGUF file in llama.cpp with the model it was made from: the same tokens, the same log-probs.

llama.cpp is that of the package xllamacpp (`alignkit[llamacpp]`): its server, in this process, on a port of this
machine.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from alignkit.errors import ExportError
from alignkit.extras import how_to_install

PACKAGE = "xllamacpp"
TEXTS = (
    "The capital of France is Paris, and its river is the Seine.",
    "def add(a, b):\n    return a + b  # 1234567 and 89",
    "Grüße aus Köln:   naïve café — 你好, мир! 👍🏽",
)
EVERY = 3
"""Tokens from one compared position of a text to the next."""
PROBABLE = 10
"""Most probable next tokens whose log-probs are compared at each position."""
LIMITS = {"f32": 0.01, "f16": 0.05, "bf16": 0.05, "q8_0": 0.5}
"""Largest mean difference of log-probs in nats, by how weights are stored. Fewer bits are measured, not limited.

Eight bits alone cost Gemma 3 270M 0.3, whose f32 file differs by 0.004; a wrong file costs whole nats.
"""
SECONDS = 600.0
"""For one answer of llama.cpp."""
F32 = 0
"""ggml's number of float32."""
NO_FLASH_ATTENTION = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far llama.cpp's log-probs are from the model's."""

    mean: float
    largest: float
    places: int
    """Positions at which PROBABLE log-probs were compared."""


def check(file: Path, model: Any, tokenizer: Any, stored: str, report: Callable[[str], object]) -> None:
    """Report how well llama.cpp answers with `file` as `model` does; a sentence if its package is not installed.

    Raises ExportError if it reads other tokens, or other log-probs beyond LIMITS.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        report(f"Not checked in llama.cpp, which is not installed: {how_to_install('llamacpp')}")
        return
    found = compare(file, model, tokenizer)
    if found.mean > LIMITS.get(stored, float("inf")):
        raise ExportError(
            f"llama.cpp does not answer with {file.name} as the model does: its log-probs differ by {found.mean:.3g} "
            f"on average, expected at most {LIMITS[stored]}"
        )
    report(
        f"llama.cpp reads {file.name} as the model does: log-probs after {found.places} beginnings differ by "
        f"{found.mean:.2g} nats on average, {found.largest:.2g} at most"
    )


def compare(file: Path, model: Any, tokenizer: Any) -> Comparison:
    """Both log-probs of what follows beginnings of TEXTS.

    Raises ExportError if llama.cpp splits a text differently.
    """
    import torch  # saves torch at start-up

    differences: list[list[float]] = []
    with llama(file) as engine:
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            found = engine.tokens(text)
            if found != ids:
                raise ExportError(
                    f"llama.cpp splits a text into other tokens than the model's tokenizer: {text!r} into {found}, "
                    f"expected {ids}"
                )
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().cpu()
            own = torch.log_softmax(logits, dim=-1)
            for length in range(2, len(ids) + 1, EVERY):
                following = engine.following(ids[:length])
                differences.append(
                    [abs(value - float(own[length - 1, token])) for token, value in following.items()]
                )
    every = [difference for place in differences for difference in place]
    if not every:
        raise ExportError(f"llama.cpp gives no log-probs for {file.name}")
    return Comparison(sum(every) / len(every), max(every), sum(map(bool, differences)))


class Llama:
    """A model in llama.cpp's server."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, with the tokens that the model puts around it."""
        return list(self._ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"])

    def following(self, ids: list[int]) -> dict[int, float]:
        """The most probable tokens after `ids` -> their log-probs; empty if the first is a part of a character."""
        found = self._ask(
            "/completion",
            prompt=ids,
            n_predict=1,
            n_probs=PROBABLE,
            temperature=0.0,
            cache_prompt=False,  # with sliding windows, a beginning that is kept changes what follows
        )
        answer = found.get("completion_probabilities") or [{"top_logprobs": ()}]
        return {one["id"]: one["logprob"] for one in answer[0]["top_logprobs"]}

    def _ask(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self._client.post(path, json=body)
        if answer.is_error:
            raise ExportError(f"llama.cpp cannot compute with the file: {answer.text[:200]}")
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def llama(file: Path) -> Iterator[Llama]:
    """The model in `file`, on the CPU, with its cache in float32. Raises ExportError if llama.cpp cannot load it."""
    import torch  # saves torch at start-up, and an extra
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx, options.n_parallel, options.port = 256, 1, 0
    options.cache_type_k = options.cache_type_v = F32
    options.flash_attn_type = type(options.flash_attn_type)(
        NO_FLASH_ATTENTION
    )  # on a CPU it computes in 16 bits
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = torch.get_num_threads()
    options.n_gpu_layers, options.warmup, options.fit_params, options.verbosity = 0, False, False, -1
    try:
        server = xllamacpp.Server(options)
    except RuntimeError as error:
        raise ExportError(f"llama.cpp cannot load {file.name}: {error}") from error
    with httpx.Client(base_url=server.listening_address, timeout=SECONDS, trust_env=False) as client:
        yield Llama(client)
