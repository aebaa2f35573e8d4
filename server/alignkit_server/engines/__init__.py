"""Inference engines: one vLLM process per base model, the adapters it serves, and the proof that it serves them."""
