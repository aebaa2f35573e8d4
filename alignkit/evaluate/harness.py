"""lm-evaluation-harness on a model behind an OpenAI-shaped service."""

import os
import subprocess
import sys

from alignkit import extras
from alignkit.errors import AlignkitError


def harness_command(
    base_url: str, model: str, tasks: str, tokenizer: str, max_length: int | None = None
) -> list[str]:
    """The command that runs `tasks` on `model` of the service at `base_url`, which ends in /v1.

    `tasks` are names or YAML files, comma-separated. The completions route has the log-probs that tasks with choices
    need. `tokenizer` is a folder or a hub id; the harness counts a question's tokens with it, and shortens questions
    to `max_length` tokens. Raises AlignkitError for a name that the harness cannot take.
    """
    options = {
        "model": model,
        "base_url": f"{base_url.rstrip('/')}/completions",
        "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface",
        "num_concurrent": "8",
        "max_retries": "3",
    }
    if max_length is not None:
        options["max_length"] = str(max_length)
    for name, value in options.items():
        if "," in value:
            raise AlignkitError(f"--harness: expected a {name} without commas, found {value}")
    arguments = ",".join(f"{name}={value}" for name, value in options.items())
    return [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "local-completions",
        "--model_args",
        arguments,
        "--tasks",
        tasks,
    ]


def run_harness(command: list[str], key: str) -> int:
    """Run the harness with the service's key; its exit status. Raises AlignkitError if it is not installed."""
    extras.require("lm_eval", extra="harness", purpose="--harness")
    return subprocess.run(command, check=False, env={**os.environ, "OPENAI_API_KEY": key}).returncode
