"""Frozen reference models of a trainer: its policy at the start or at an earlier step, or another model."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit.errors import ModelError
from alignkit.kernels.model_head import fuse_head
from alignkit.models.adapters import start_of
from alignkit.models.layers import has_liger, use_liger
from alignkit.trainers.upstream import (
    attention_of,
    create_model_from_path,
    frozen_engine,
    get_config_model_id,
    prepare_deepspeed,
    use_adapter,
)


class References:
    """Reference models that are opened for scoring and then closed, so that none stays in memory.

    The initial reference under LoRA is the model with its adapter disabled, or with the adapter that the run started
    from. If all weights train, it is the policy itself before its first step, and later the folder that the policy
    was loaded from. A refresh keeps a copy of the trained weights on the CPU and in `folder`.
    """

    def __init__(self, trainer: Any, folder: Path, report: Callable[[str], None]) -> None:
        self._trainer = trainer
        self._folder = folder
        self._report = report
        self._snapshot: dict[str, Tensor] | None = None
        self._step = 0

    def identity(self, path: str | None) -> str:
        """Return a text that identifies this reference. Scores are reused while it stays the same."""
        if path is not None:
            sizes = [(file.name, file.stat().st_size) for file in sorted(Path(path).glob("*.safetensors"))]
            return f"model {path} {sizes}"
        return f"policy at step {self._step}"

    @contextlib.contextmanager
    def open(self, path: str | None) -> Iterator[Any]:
        """Open the model in `path`, or the frozen policy if None, with a fused head, to run without gradient."""
        if path is not None:
            with self._loaded(path) as model:
                yield model
        elif self._snapshot is not None:
            with self._swapped(self._snapshot):
                yield self.policy()
        elif is_peft_model(self._unwrapped()):
            with use_adapter(self._unwrapped(), adapter_name=start_of(self._unwrapped())):
                yield self.policy()
        elif self._trainer.state.global_step == 0:
            yield self.policy()
        else:
            with self._loaded(get_config_model_id(self._unwrapped().config)) as model:
                yield model

    def policy(self) -> Any:
        """Return the module for a forward without gradient: the engine under DeepSpeed, else the bare model."""
        trainer = self._trainer
        if not trainer.is_deepspeed_enabled:
            return self._unwrapped()
        if getattr(trainer, "deepspeed", None) is not None:
            return trainer.deepspeed
        return frozen_engine(trainer)

    def refresh(self, step: int) -> None:
        """Make the current policy the frozen policy."""
        with self._gathered():
            self._snapshot = {name: value.detach().cpu().clone() for name, value in self._trained()}
        self._step = step
        if self._trainer.accelerator.is_main_process:
            self._keep()

    def restore(self, step: int) -> None:
        """Load the frozen policy of an earlier refresh, when a run resumes."""

        path = self._path(step)
        if not path.is_file():
            self._report(f"{path.name} is missing: the reference is refreshed from the current policy")
            self.refresh(step)
            return
        self._snapshot, self._step = load_file(path), step

    def _keep(self) -> None:

        assert self._snapshot is not None  # noqa: S101 - only refresh calls this
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(self._step)
        temporary = path.with_name(f".{path.name}.tmp")
        save_file(self._snapshot, temporary)
        temporary.replace(path)
        for older in self._folder.glob("reference-*.safetensors"):
            if older != path:
                older.unlink()

    def _path(self, step: int) -> Path:
        return self._folder / f"reference-{step}.safetensors"

    def _unwrapped(self) -> Any:
        return self._trainer.accelerator.unwrap_model(self._trainer.model)

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self._unwrapped().named_parameters() if value.requires_grad]

    def _gathered(self) -> Any:
        """Gather the trained parameters for the duration and keep changes. Under ZeRO-3 each rank holds a part."""
        plugin = (
            self._trainer.accelerator.state.deepspeed_plugin if self._trainer.is_deepspeed_enabled else None
        )
        if plugin is None or plugin.zero_stage != 3:
            return contextlib.nullcontext()
        import deepspeed  # an extra

        return deepspeed.zero.GatheredParameters([value for _, value in self._trained()], modifier_rank=0)

    @contextlib.contextmanager
    def _swapped(self, weights: dict[str, Tensor]) -> Iterator[None]:
        with self._gathered():
            now = {name: value.detach().cpu().clone() for name, value in self._trained()}
            self._put(weights)
        try:
            yield
        finally:
            with self._gathered():
                self._put(now)

    def _put(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._trained():
                value.copy_(weights[name])

    @contextlib.contextmanager
    def _loaded(self, path: str) -> Iterator[Any]:
        trainer, policy = self._trainer, self._unwrapped()
        try:
            model = create_model_from_path(
                path,
                dtype=policy.dtype,
                device_map=None,
                attn_implementation=attention_of(policy),
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"the reference model {path!r} cannot be loaded: {error}") from error
        if model.config.get_text_config().vocab_size != policy.config.get_text_config().vocab_size:
            raise ModelError(
                f"the reference model {path!r}: expected the policy's vocabulary of "
                f"{policy.config.get_text_config().vocab_size:,}, found {model.config.get_text_config().vocab_size:,}"
            )
        if has_liger(policy):
            use_liger(model)
        fuse_head(model)
        model.eval()
        if trainer.is_deepspeed_enabled:
            yield prepare_deepspeed(model, trainer.accelerator)
        else:
            yield model.to(trainer.accelerator.device)
