"""Private parts of TRL, transformers and accelerate that the trainers rely on; `tests/test_upstream.py` pins them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.trainer import dpo_trainer


@contextmanager
def no_reference_model(policy: Any) -> Iterator[None]:
    """DPOTrainer made meanwhile loads no reference model, whatever trains and however it is sharded.

    It loads models by one function of its module, a policy that is given by name first, and takes None for a
    reference that is not there.
    """
    original = dpo_trainer.create_model_from_path
    to_load = [policy] if isinstance(policy, str) else []

    def create(_path: Any, *args: Any, **kwargs: Any) -> Any:
        return original(to_load.pop(), *args, **kwargs) if to_load else None

    dpo_trainer.create_model_from_path = create
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path = original
