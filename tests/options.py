"""The options of jobs and runs, as their declarations list them."""

import json
from typing import get_args

from alignkit.after import Step
from alignkit.methods import METHODS, hyperparameters_of


def sections() -> list[str]:
    """The hyperparameters that are sections of options, without the lists of terms and of steps after training."""
    schema = hyperparameters_of(METHODS["f_dpo"]).model_json_schema()["properties"]
    return [name for name in schema if "$ref" in json.dumps(schema[name]) and name not in {"terms", "after"}]


def steps() -> list[str]:
    """The types of the steps after training."""
    union, _discriminator = get_args(Step)
    return [kind.model_fields["type"].default for kind in get_args(union)]
