"""The alignkit service: OpenAI-shaped fine-tuning jobs, served through vLLM."""
