"""lm-evaluation-harness on a model behind an OpenAI-shaped service."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from alignkit import extras
from alignkit.errors import AlignkitError

CHAT = "--apply_chat_template"
PATIENCE_SECONDS = 900
"""For one answer: the first one waits until the model's engine has started."""


@dataclass(frozen=True, slots=True)
class Counting:
    """How the harness counts a question's tokens."""

    tokenizer: str
    """A folder or a hub id."""
    longest: int | None = None
    """Tokens to which questions are shortened; None for the harness's own choice."""
    starts: bool = False
    """Whether the model expects the tokenizer's start token before every text, as Gemma and Llama do."""


def harness_command(
    base_url: str, model: str, tasks: str, counting: Counting, more: Sequence[str] = ()
) -> list[str]:
    """The command that runs `tasks` on `model` of the service at `base_url`, which ends in /v1.

    `tasks` are names or YAML files, comma-separated; `more` are further arguments of the harness. The completions
    route has the log-probs that tasks with choices need. A chat template, if one is applied, writes the start token.
    Raises AlignkitError for a name that the harness cannot take.
    """
    options = {
        "model": model,
        "base_url": f"{base_url.rstrip('/')}/completions",
        "tokenizer": counting.tokenizer,
        "tokenizer_backend": "huggingface",
        "num_concurrent": "8",
        "max_retries": "3",
        "timeout": str(PATIENCE_SECONDS),
    }
    if counting.longest is not None:
        options["max_length"] = str(counting.longest)
    if counting.starts and not any(one.split("=")[0] == CHAT for one in more):
        options |= {"add_bos_token": "True"}
    for name, value in options.items():
        if "," in value:
            raise AlignkitError(f"--harness: expected a {name} without commas, found {value}")
    arguments = ",".join(f"{name}={value}" for name, value in options.items())
    return [
        *[sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments],
        *["--tasks", tasks, *more],
    ]


def run_harness(command: list[str], key: str) -> int:
    """Run the harness with the service's key; its exit status. Raises AlignkitError if it is not installed."""
    extras.require("lm_eval", extra="harness", purpose="--harness")
    return subprocess.run(command, check=False, env={**os.environ, "OPENAI_API_KEY": key}).returncode
