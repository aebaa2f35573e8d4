"""A stand-in for the command line of lm-evaluation-harness: prints the options that it took, and exits with 3.

tests/e2e/test_harness.py compares the options with the real one's.
"""

import argparse
import json
import os
import sys


def parser() -> argparse.ArgumentParser:
    """The options that alignkit writes or its pages name, as the real one declares them."""
    options = argparse.ArgumentParser("lm-eval run", allow_abbrev=False)
    options.add_argument("--model")
    options.add_argument("--model_args", nargs="+")
    options.add_argument("--tasks", nargs="+")
    options.add_argument("--apply_chat_template", nargs="?", const=True)
    options.add_argument("--num_fewshot", type=int)
    options.add_argument("--limit", type=float)
    options.add_argument("--output_path")
    options.add_argument("--log_samples", action="store_true")
    return options


if __name__ == "__main__":
    print(json.dumps(vars(parser().parse_args()) | {"key": os.environ["OPENAI_API_KEY"]}))
    sys.exit(3)
