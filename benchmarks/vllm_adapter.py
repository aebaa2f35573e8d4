"""An answer of vLLM with and without a LoRA adapter: `python -m benchmarks.vllm_adapter MODEL ADAPTER`.

Fails unless both answers have tokens. Random weights say nothing about the answers themselves.
"""

import sys

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main(model: str, adapter: str) -> None:
    """Draw eight tokens from the model and from the model with the adapter."""
    engine = LLM(
        model=model, enable_lora=True, max_lora_rank=64, max_model_len=256, gpu_memory_utilization=0.3
    )
    drawn = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    for request in (None, LoRARequest("adapter", 1, adapter)):
        (answer,) = engine.generate(["The capital of France is"], drawn, lora_request=request)
        tokens = answer.outputs[0].token_ids
        print("adapter" if request else "base", list(tokens))
        if len(tokens) != drawn.max_tokens:
            raise SystemExit(f"expected {drawn.max_tokens} tokens, found {len(tokens)}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
