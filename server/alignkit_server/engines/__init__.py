"""Inference engines: one vLLM process per base model, the adapters it serves, and the canary that verifies them."""
