"""What the library relies on in TRL, transformers, accelerate and torch: that it is there, and that it is called.

A release of theirs that renames or no longer calls something fails here, with its name, instead of training something
else in silence.
"""

import ast
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from accelerate.utils import other
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

import alignkit
from alignkit.estimate import upstream as of_estimates
from alignkit.methods import KTO
from alignkit.run.reference_store import ReferenceStore
from alignkit.trainers import (
    D2OConfig,
    D2OTrainer,
    FDPOConfig,
    FDPOTrainer,
    LabelledTrainer,
    SinKDConfig,
    SinKDTrainer,
    SupervisedTrainer,
    upstream,
)
from alignkit.trainers.upstream import ATTRIBUTES, FUNCTIONS, HOOKS, Hook
from tests.distillation import made, tokenised
from tests.tiny import build_tiny_model

THEIRS = (Trainer, SFTTrainer, DPOTrainer, KTOTrainer)
FAMILIES = {
    "preference": FDPOTrainer,
    "labelled": LabelledTrainer,
    "supervised": SupervisedTrainer,
    "d2o": D2OTrainer,
    "distillation": SinKDTrainer,
}


def test_only_a_run_under_zero_imports_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other, "is_deepspeed_available", lambda: True)
    monkeypatch.setattr(upstream, "_deepspeed_is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # an import of it fails
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ImportError):
        other.extract_model_from_parallel(model)
    upstream.skip_deepspeed()
    assert other.extract_model_from_parallel(model) is model
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ImportError):
        other.extract_model_from_parallel(model)


def override(kind: type, name: str) -> type | None:
    """The first class of alignkit, from `kind` upwards, that defines `name`."""
    ours = (cls for cls in kind.__mro__ if cls.__module__.startswith("alignkit."))
    return next((cls for cls in ours if name in vars(cls)), None)


EXPECTED = [
    pytest.param(family, hook, id=f"{family}-{hook.name}")
    for family, kind in FAMILIES.items()
    for hook in HOOKS
    if issubclass(kind, hook.owner) and override(kind, hook.name) is not None
]


def settings(folder: Path) -> dict[str, Any]:
    """Arguments of a run that logs, evaluates and saves at each of its steps, and loads the best at its end."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "max_steps": 1,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "prediction_loss_only": True,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def pairs(count: int) -> Dataset:
    said = [
        {"prompt": f"Question {i}?", "chosen": " yes it is", "rejected": " no, never"} for i in range(count)
    ]
    return Dataset.from_list(said)


def labelled(count: int) -> Dataset:
    said = [
        {"prompt": f"Question {i}?", "completion": f" yes {i}", "label": i % 2 == 0} for i in range(count)
    ]
    return Dataset.from_list(said)


def dispreferred(count: int) -> Dataset:
    samples = ["yes", "yes it is"]
    said = [{"prompt": f"Question {i}?", "rejected": "no, never", "samples": samples} for i in range(count)]
    return Dataset.from_list(said)


def trainer_of(family: str, folder: Path, model: Path) -> Any:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    options, tokenizer = settings(folder), AutoTokenizer.from_pretrained(model)
    ready = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    if family == "distillation":
        return made(SinKDTrainer, SinKDConfig(**options, **ready), model, model, peft_config=lora)
    config, data = {
        "preference": lambda: (FDPOConfig(**options, precompute_ref_log_probs=True), pairs),
        "supervised": lambda: (
            SFTConfig(**options, **ready, router_aux_loss_coef=0.0),
            lambda count: tokenised(tokenizer, count),
        ),
        "labelled": lambda: (KTOConfig(**options, train_sampling_strategy="random"), labelled),
        "d2o": lambda: (D2OConfig(**options, max_length=64), dispreferred),
    }[family]()
    store = ReferenceStore(folder / "references")
    method = {"method": KTO(), "references": store} if family == "labelled" else {}
    return FAMILIES[family](
        **method,
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config,
        processing_class=tokenizer,
        train_dataset=data(4),
        eval_dataset=data(2),
        peft_config=lora,
    )


class Calls:
    """Which hooks of a family were called, and by which installed module."""

    def __init__(self) -> None:
        self.by: dict[tuple[str, str], str] = {}
        self.trainers: dict[str, Any] = {}

    def watch(self, patch: pytest.MonkeyPatch, family: str) -> None:
        for param in EXPECTED:
            of, hook = param.values
            owner = override(FAMILIES[family], hook.name)
            if of == family and owner is not None:
                patch.setattr(owner, hook.name, self._noting(vars(owner)[hook.name], (family, hook.name)))

    def _noting(self, method: Callable[..., Any], key: tuple[str, str]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            module = sys._getframe(1).f_globals["__name__"]
            if not module.startswith(("alignkit.", __name__)):
                self.by.setdefault(key, module)
            return method(*args, **kwargs)

        return noting


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """A run of two steps of each family, the second one resumed from the first one's checkpoint."""
    before, found = torch.get_num_threads(), Calls()
    torch.set_num_threads(1)
    model = build_tiny_model(tmp_path_factory.mktemp("model"))
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        with pytest.MonkeyPatch.context() as patch:
            found.watch(patch, family)
            trainer = trainer_of(family, folder, model)
            trainer.train()
            trainer.args.max_steps = 2
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
            assert trainer.state.global_step == 2
            if family == "labelled":
                trainer.evaluate(labelled(3))
        found.trainers[family] = trainer
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize(("family", "hook"), EXPECTED)
def test_the_installed_version_calls_the_hook(calls: Calls, family: str, hook: Hook) -> None:
    assert (family, hook.name) in calls.by, (
        f"{hook.owner.__name__} no longer calls {hook.name}, which {FAMILIES[family].__name__} overrides"
    )


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_the_hook_takes_the_parameters_relied_on(hook: Hook) -> None:
    method = getattr(hook.owner, hook.name, None)
    assert method is not None, f"{hook.owner.__name__} has no {hook.name}"
    assert_takes(method, hook.parameters)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_the_hook_is_overridden_somewhere(hook: Hook) -> None:
    assert any(param.values[1] is hook for param in EXPECTED)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_the_function_takes_the_parameters_relied_on(function: Callable[..., Any]) -> None:
    assert_takes(function, FUNCTIONS[function])


def assert_takes(function: Callable[..., Any], parameters: tuple[str, ...]) -> None:
    found = inspect.signature(inspect.unwrap(function)).parameters
    missing = [name for name in parameters if name not in found]
    assert not missing, f"{function.__qualname__}: expected {', '.join(missing)}, found {', '.join(found)}"


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner in ATTRIBUTES for name in ATTRIBUTES[owner]]
)
def test_the_installed_class_uses_the_attribute(owner: type, name: str) -> None:
    assert name in names_in(owner), f"{owner.__name__} no longer has or reads {name}"


def test_attributes_are_there_in_a_run(calls: Calls) -> None:
    for owner, names in ATTRIBUTES.items():
        for trainer in calls.trainers.values():
            if isinstance(trainer, owner):
                assert [name for name in names if not hasattr(trainer, name)] == []


def names_in(kind: type) -> set[str]:
    """The attributes that a class and those above it define, or use in their methods."""
    found: set[str] = set()
    for cls in kind.__mro__[:-1]:
        for name, value in vars(cls).items():
            found.add(name)
            plain = getattr(value, "__func__", value)
            for function in (value.fget, value.fset) if isinstance(value, property) else (plain,):
                code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
                found |= names_of(code) if code else set()
    return found


def names_of(code: CodeType) -> set[str]:
    nested = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(names_of, nested))


def test_every_override_is_declared() -> None:
    declared = {hook.name for hook in HOOKS} | {"__init__", "train"}
    overridden = {
        name
        for kind in FAMILIES.values()
        for cls in kind.__mro__
        if cls.__module__.startswith("alignkit.")
        for name, value in vars(cls).items()
        if inspect.isfunction(value)
        and any(hasattr(owner, name) for owner in THEIRS if issubclass(kind, owner))
    }
    assert {name for name in overridden if not name.startswith("__")} <= declared


def test_every_private_name_of_theirs_is_declared() -> None:
    """A private attribute that an installed trainer uses too is theirs, or would overwrite it."""
    declared = {hook.name for hook in HOOKS}.union(*ATTRIBUTES.values())
    theirs = set().union(*map(names_in, THEIRS))
    folder = Path(alignkit.__file__).parent / "trainers"
    for file in sorted(set(folder.glob("*.py")) - {folder / "upstream.py"}):
        used = {
            node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)
        }
        private = {name for name in used if name.startswith("_") and not name.startswith("__")}
        assert (private & theirs) - declared == set(), file.name


@pytest.mark.parametrize("config", [TrainingArguments, SFTConfig, DPOConfig, KTOConfig])
def test_configurations_name_the_fields_that_hold_a_dict(config: Any) -> None:
    assert isinstance(config._VALID_DICT_FIELDS, list)


def test_the_reference_is_loaded_by_the_function_that_is_replaced() -> None:
    assert "create_model_from_path" in names_of(DPOTrainer.__init__.__code__)


def test_accelerates_gradient_state_is_set_as_by_the_trainer() -> None:
    from accelerate.state import GradientState

    assert_takes(GradientState._set_sync_gradients, ("sync_gradients",))
    assert "_set_sync_gradients" in names_in(Trainer)


def test_a_configuration_s_attention_is_the_one_set() -> None:
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=1, hidden_size=8, vocab_size=8)
    of_estimates.set_attention(config, "eager")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.config._attn_implementation == "eager"
    assert of_estimates.supports_sdpa(config)


def test_replaced_weights_stay_shared() -> None:
    tied = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)])
    tied[1].weight = tied[0].weight
    tied.register_buffer("counts", torch.zeros(2))
    of_estimates.replace_tensors(tied, lambda old: torch.nn.Parameter(old + 1), lambda old: old + 1)
    assert tied[1].weight is tied[0].weight
    assert tied.counts.tolist() == [1, 1]


def test_a_head_is_made_whole_from_any_number_of_parameters() -> None:
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    (given,) = inspect.signature(maybe_gather_lm_head_ctx).parameters.values()
    assert given.kind is inspect.Parameter.VAR_POSITIONAL


def test_children_are_read_and_replaced_by_name() -> None:
    from alignkit.kernels.upstream import children_by_name

    module = torch.nn.Sequential(torch.nn.ReLU())
    children_by_name(module)["0"] = torch.nn.Tanh()
    assert isinstance(module[0], torch.nn.Tanh)


def test_a_module_tells_that_it_is_compiled() -> None:
    from alignkit.kernels.upstream import is_compiled

    module = torch.nn.Identity()
    assert not is_compiled(module)
    module.compile(backend="eager")
    assert is_compiled(module)


def test_the_backward_of_cdist_takes_what_pairwise_l1_gives() -> None:
    names = [argument.name for argument in torch.ops.aten._cdist_backward.default._schema.arguments]
    assert names == ["grad", "x1", "x2", "p", "cdist"]
