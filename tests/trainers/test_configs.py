"""The trainers' configurations: derived from the methods, and refused in one sentence where another is expected."""

import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from transformers import HfArgumentParser, TrainingArguments
from trl import DPOConfig, SFTConfig

from alignkit import methods, trainers
from alignkit.errors import DataError
from alignkit.methods import Method
from alignkit.trainers.configs import own_config

CONFIGS: list[tuple[Any, type[Method], set[str]]] = [
    (trainers.FDPOConfig, methods.FDPO, set()),
    (trainers.D2OConfig, methods.D2O, set()),
    (trainers.SinKDConfig, methods.SinKD, {"teacher"}),
    (trainers.BDKDConfig, methods.BDKD, {"teacher", "teacher_lora"}),
]
"""Configuration, method, and the options that a trainer is handed as objects."""
NAMES = [config.__name__ for config, *_ in CONFIGS]
ON_CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}


@pytest.mark.parametrize(("config", "method", "objects"), CONFIGS, ids=NAMES)
def test_a_configuration_has_the_methods_options_and_defaults(
    tmp_path: Path, config: Any, method: type[Method], objects: set[str]
) -> None:
    assert set(method.own_options()) - {field.name for field in fields(config)} == objects
    made = config(str(tmp_path), **ON_CPU).method()
    assert isinstance(made, method)
    for name, option in method.own_options().items():
        expected = None if name in objects else option.get_default(call_default_factory=True)
        assert getattr(made, name) == expected, name


@pytest.mark.parametrize(("config", "method", "objects"), CONFIGS, ids=NAMES)
def test_a_configuration_is_found_where_pickle_looks(
    config: Any, method: type[Method], objects: set[str]
) -> None:
    assert pickle.loads(pickle.dumps(config)) is config


def test_a_configuration_is_read_from_the_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser(trainers.BDKDConfig)
    words = [
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
        "true",
        "--bf16",
        "false",
        "--gate",
        "soft",
        "--nu",
        "3",
    ]
    (config,) = parser.parse_args_into_dataclasses(words)
    assert (config.method().gate, config.method().nu) == ("soft", 3.0)


@pytest.mark.parametrize(("config", "method", "objects"), CONFIGS, ids=NAMES)
def test_without_arguments_the_defaults_go_into_a_folder_named_after_model_and_method(
    config: Any, method: type[Method], objects: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # TRL's defaults are bfloat16 on a GPU
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    made = own_config(config, None, "org/model")
    assert isinstance(made, config)
    assert made.output_dir == f"model-{made.method().type.upper().replace('_', '-')}"


WRONG = [
    (trainers.D2OTrainer, DPOConfig, "alignkit.trainers.D2OConfig, which has DPOConfig's options and more"),
    (trainers.FDPOTrainer, DPOConfig, "alignkit.trainers.FDPOConfig, which has DPOConfig's options and more"),
    (trainers.FDPOTrainer, SFTConfig, "alignkit.trainers.FDPOConfig"),
    (
        trainers.SinKDTrainer,
        SFTConfig,
        "alignkit.trainers.SinKDConfig, which has SFTConfig's options and more",
    ),
    (trainers.SinKDTrainer, DPOConfig, "alignkit.trainers.SinKDConfig"),
    (trainers.BDKDTrainer, trainers.SinKDConfig, "alignkit.trainers.BDKDConfig"),
]


@pytest.mark.parametrize(("trainer", "given", "expected"), WRONG)
def test_another_configuration_is_refused_before_the_model_is_loaded(
    tmp_path: Path, trainer: Any, given: Any, expected: str
) -> None:
    with pytest.raises(TypeError, match=f"^args: expected {expected}, found {given.__name__}$"):
        trainer("no/such/model", args=given(str(tmp_path), **ON_CPU))


def test_a_trainer_of_any_method_refuses_another_configuration_too(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), **ON_CPU)
    with pytest.raises(TypeError, match=r"expected alignkit\.trainers\.DistillationConfig, which has"):
        trainers.DistillationTrainer("none", "none", args, method=methods.SinKD(teacher={"path": "t"}))
    with pytest.raises(TypeError, match=r"expected trl.SFTConfig, found DPOConfig"):
        trainers.SupervisedTrainer("none", args=DPOConfig(str(tmp_path), **ON_CPU))
    with pytest.raises(TypeError, match=r"expected trl.DPOConfig, which has .* found TrainingArguments"):
        trainers.PreferenceTrainer("none", args=args, method=methods.IPO())


PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
HELD_OUT = {"known": Dataset.from_list([{"text": "Hi"}]), "pairs": Dataset.from_list([PAIR])}


@pytest.mark.parametrize(
    ("trainer", "data"),
    [
        (trainers.SupervisedTrainer, {"train_dataset": Dataset.from_list([PAIR])}),
        (trainers.SupervisedTrainer, {"eval_dataset": HELD_OUT}),
        (trainers.SinKDTrainer, {"train_dataset": IterableDataset.from_generator(lambda: iter([PAIR]))}),
    ],
)
def test_columns_that_trl_cannot_read_are_refused_before_the_model_is_loaded(
    tmp_path: Path, trainer: Any, data: Any
) -> None:
    teacher, config = ({"teacher_model": "none"}, trainers.SinKDConfig)
    if trainer is trainers.SupervisedTrainer:
        teacher, config = {}, SFTConfig
    with pytest.raises(DataError) as refused:
        trainer("no/such/model", args=config(str(tmp_path), **ON_CPU), **teacher, **data)
    assert str(refused.value) == (
        f"{next(iter(data))}: expected the columns prompt and completion, or messages, text or input_ids; found "
        "chosen, prompt, rejected. alignkit.data.tokenise reads the rows of a file in other forms"
    )
