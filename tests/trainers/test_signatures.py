"""Every trainer says in `help()` which arguments it takes."""

import inspect
import pydoc

import pytest
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from alignkit import trainers

CLASSES = sorted(name for name in trainers.__all__ if name.endswith("Trainer"))
VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("name", CLASSES)
def test_a_trainer_names_every_parameter_with_its_type(name: str) -> None:
    for parameter in inspect.signature(getattr(trainers, name)).parameters.values():
        assert parameter.kind not in VARIADIC, parameter
        assert parameter.annotation is not parameter.empty, parameter


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_not_a_trainers_own_is_trls(name: str) -> None:
    trainer = getattr(trainers, name)
    (base,) = {DPOTrainer, KTOTrainer, SFTTrainer} & {*trainer.__mro__}
    own = {
        parameter
        for one in trainer.__mro__
        if one.__module__.startswith("alignkit") and "__init__" in vars(one)
        for parameter in vars(one)["__init__"].__code__.co_varnames
    }
    shown = inspect.signature(trainer).parameters.keys()
    assert shown - own <= inspect.signature(base).parameters.keys()
    assert {"train_dataset", "eval_dataset", "processing_class", "peft_config"} <= shown


def test_help_shows_them() -> None:
    text = pydoc.render_doc(trainers.FDPOTrainer, renderer=pydoc.plaintext)
    assert "args: FDPOConfig | None" in text.replace("alignkit.trainers.configs.", "")
    assert "**kwargs" not in text.split("Method resolution order")[0]
