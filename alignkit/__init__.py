"""Alignment fine-tuning of language models: f-DPO, D2O, SinKD and BD-KD."""

__version__ = "0.1.0"
