"""Private and undocumented parts of TRL, transformers and accelerate that the trainers rely on.

They are all named here and nowhere else. `tests/test_upstream.py` checks that the installed version has each of them,
with the parameters used, and that it calls each hook during a run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate.utils import other
from transformers import Trainer
from trl import DPOTrainer, KTOTrainer, SFTTrainer
from trl.models import prepare_deepspeed
from trl.models.utils import disable_gradient_checkpointing, unwrap_model_for_generation
from trl.trainer import dpo_trainer, kto_trainer
from trl.trainer.utils import create_model_from_path, get_config_model_id, use_adapter

from alignkit.sharding import sharding

__all__ = [
    "ATTRIBUTES",
    "FUNCTIONS",
    "HOOKS",
    "Hook",
    "attention_of",
    "batch_size",
    "create_model_from_path",
    "dict_fields",
    "disable_gradient_checkpointing",
    "frozen_engine",
    "get_config_model_id",
    "gradients_synchronise",
    "load_best_model",
    "logging_sums",
    "no_reference_model",
    "prepare_deepspeed",
    "restore_logging_sums",
    "skip_deepspeed",
    "unwrap_model_for_generation",
    "use_adapter",
    "weights_digest",
]


@dataclass(frozen=True, slots=True)
class Hook:
    """A method of an upstream trainer that one of our trainers overrides and expects to be called."""

    owner: type
    """The upstream class that calls the method."""
    name: str
    parameters: tuple[str, ...] = ()
    """Parameters of the override, without `self`."""


HOOKS = (
    # The loss and its log.
    Hook(Trainer, "compute_loss", ("model", "inputs", "return_outputs", "num_items_in_batch")),
    Hook(Trainer, "log", ("logs", "start_time")),
    Hook(Trainer, "prediction_step", ("model", "inputs", "prediction_loss_only", "ignore_keys")),
    Hook(Trainer, "evaluation_loop"),
    Hook(Trainer, "training_step", ("model", "inputs", "num_items_in_batch")),
    Hook(Trainer, "floating_point_ops", ("inputs",)),
    Hook(Trainer, "create_optimizer", ("model",)),
    # The rows of a step.
    Hook(Trainer, "get_batch_samples", ("epoch_iterator", "num_batches", "device")),
    Hook(Trainer, "_get_train_sampler", ("train_dataset",)),
    Hook(Trainer, "_get_num_items_in_batch", ("batch_samples", "device")),
    Hook(Trainer, "_set_signature_columns_if_needed"),
    # A run that is paused and resumed.
    Hook(Trainer, "_run_epoch"),
    Hook(Trainer, "_evaluate", ("trial", "ignore_keys_for_eval", "skip_scheduler")),
    Hook(Trainer, "_get_output_dir", ("trial",)),
    Hook(Trainer, "_save_checkpoint", ("model", "trial")),
    Hook(Trainer, "_save", ("output_dir", "state_dict")),
    Hook(Trainer, "save_model", ("output_dir", "_internal_call")),
    Hook(Trainer, "_load_from_checkpoint", ("resume_from_checkpoint", "model")),
    Hook(Trainer, "_load_best_model"),
    Hook(Trainer, "create_model_card", ("model_name", "tags")),
    # Tokenised datasets, and the reference's log-probs.
    Hook(DPOTrainer, "_prepare_dataset", ("dataset", "processing_class", "args", "dataset_name")),
    Hook(KTOTrainer, "_prepare_dataset", ("dataset", "processing_class", "args", "dataset_name")),
    Hook(DPOTrainer, "_precompute_ref_logps", ("dataset", "name", "batch_size")),
    Hook(KTOTrainer, "_precompute_ref_logps", ("dataset", "name", "batch_size")),
)
"""All methods that the trainers and their mixins override, except `__init__` and `train`, which we call ourselves."""

ATTRIBUTES: dict[type, tuple[str, ...]] = {
    Trainer: (
        "_globalstep_last_logged",
        "_loss_shifts_labels",
        "_prepare_inputs",
        "_signature_columns",
        "_total_loss_scalar",
        "_tr_loss",
        "_train_batch_size",
        "compute_loss_func",
        "get_tp_size",
        "model_accepts_loss_kwargs",
        "place_model_on_device",
    ),
    SFTTrainer: ("_tag_names", "_total_train_tokens", "aux_loss_enabled"),
    # Before transformers 5.19, TRL's base class reads `loss_is_scaled_for_ga`, not the Trainer.
    KTOTrainer: (
        "_tag_names",
        "_total_train_tokens",
        "aux_loss_enabled",
        "loss_is_scaled_for_ga",
        "precompute_ref_logps",
        "ref_model",
    ),
    DPOTrainer: (
        "_precompute_engine",
        "_precompute_model_hash",
        "_tag_names",
        "_total_train_tokens",
        "aux_loss_enabled",
        "compute_ref_log_probs",
        "loss_is_scaled_for_ga",
        "maybe_activation_offload_context",
        "precompute_ref_logps",
        "ref_model",
    ),
}
"""Upstream class -> attributes that our trainers read, or set for the upstream class to read."""

FUNCTIONS: dict[Any, tuple[str, ...]] = {
    create_model_from_path: ("model_id", "kwargs"),
    disable_gradient_checkpointing: ("model", "gradient_checkpointing_kwargs"),
    get_config_model_id: ("config",),
    prepare_deepspeed: ("model", "accelerator"),
    unwrap_model_for_generation: ("model", "accelerator", "gradient_checkpointing_kwargs"),
    use_adapter: ("model", "adapter_name"),
}
"""Functions that other modules import from here -> the parameters that they pass."""


_deepspeed_is_installed = other.is_deepspeed_available


def skip_deepspeed() -> None:
    """Let accelerate import DeepSpeed only under ZeRO.

    It would import it wherever it is installed, for seconds, to see whether a model is one of its engines.
    """
    other.is_deepspeed_available = lambda: (sharding() or "").startswith("ZeRO") and _deepspeed_is_installed()


@contextmanager
def no_reference_model(policy: Any) -> Iterator[None]:
    """Make a DPOTrainer or KTOTrainer created in this context load no reference model.

    They load models with one function of their module: first the policy, if given by name, then the reference. They
    accept None for the reference.
    """
    original = dpo_trainer.create_model_from_path
    to_load = [policy] if isinstance(policy, str) else []

    def create(_path: Any, *args: Any, **kwargs: Any) -> Any:
        return original(to_load.pop(), *args, **kwargs) if to_load else None

    dpo_trainer.create_model_from_path = kto_trainer.create_model_from_path = create
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path = kto_trainer.create_model_from_path = original


def logging_sums(trainer: Any) -> dict[str, Any]:
    """Return the Trainer's sums since its last log, which its checkpoints lack, and the tokens trained so far."""
    return {
        "loss_since": trainer._tr_loss.cpu(),
        "loss_until": trainer._total_loss_scalar,
        "last_logged_step": trainer._globalstep_last_logged,
        "trained_tokens": trainer._total_train_tokens,
    }


def restore_logging_sums(trainer: Any, sums: dict[str, Any]) -> None:
    """Restore the values of `logging_sums`. Call it after the Trainer has set its own sums to zero."""
    trainer._tr_loss.copy_(sums["loss_since"])
    trainer._total_loss_scalar = sums["loss_until"]
    trainer._globalstep_last_logged = sums["last_logged_step"]
    trainer._total_train_tokens = sums["trained_tokens"]


def batch_size(trainer: Any) -> int:
    """Return the number of rows of a training batch on one process."""
    rows: int = trainer._train_batch_size
    return rows


def load_best_model(trainer: Any) -> None:
    """Load `state.best_model_checkpoint` into the model; handles peft, ZeRO and FSDP. Collective."""
    trainer._load_best_model()


def frozen_engine(trainer: Any) -> Any:
    """Return the DeepSpeed engine that runs the policy before training. TRL's own evaluation reuses it."""
    if trainer._precompute_engine is None:
        trainer._precompute_engine = prepare_deepspeed(trainer.model, trainer.accelerator)
    return trainer._precompute_engine


def weights_digest(trainer: Any) -> str:
    """Return DPOTrainer's digest of the initial weights."""
    return str(trainer._precompute_model_hash)


@contextmanager
def gradients_synchronise(state: Any, *, synchronise: bool) -> Iterator[None]:
    """Set whether a backward in this context synchronises gradients, also under DeepSpeed."""
    before = state.sync_gradients
    state._set_sync_gradients(synchronise)
    try:
        yield
    finally:
        state._set_sync_gradients(before)


def attention_of(model: Any) -> str | None:
    """Return the name of the attention implementation that a transformers model uses."""
    name: str | None = model.config._attn_implementation
    return name


def dict_fields(config: type, *names: str) -> list[str]:
    """Return `_VALID_DICT_FIELDS` for a subclass of `config` that adds the dict fields `names`."""
    return [*config._VALID_DICT_FIELDS, *names]  # type: ignore[attr-defined]
