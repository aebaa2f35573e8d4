"""Settings that fit: what `auto` becomes on a device, and what is said where nothing fits."""

from typing import Any

import pytest

from alignkit.errors import RecipeError
from alignkit.estimate import EstimateError, Fitted, estimate, fit, without_estimate
from alignkit.estimate.devices import Device, get
from alignkit.estimate.lengths import assumed
from alignkit.recipe import Recipe
from tests.estimate.recipes import recipe

pytestmark = pytest.mark.usefixtures("without_amx")

AUTO = {
    "batch_size": 32,
    "micro_batch_size": "auto",
    "gradient_checkpointing": "auto",
    "eval_batch_size": "auto",
    "mixed_precision": "auto",
}
LENGTHS = assumed(512, 1000, 2)


def job(path: str = "llama-3.1-8b", **training: Any) -> Recipe:
    """A job's recipe as its defaults make it, of rows with two answers."""
    model = {"path": path, "dtype": "auto", "attn_implementation": "auto"}
    return recipe({"type": "f_dpo"}, path, model=model, training=AUTO | training)


@pytest.fixture(scope="module")
def on_24() -> Fitted:
    return fit(job(), LENGTHS, device="l4")


def test_a_default_job_of_an_8b_model_fits_on_a_24_gb_gpu(on_24: Fitted) -> None:
    assert on_24.estimate is not None
    assert on_24.estimate.fits
    again = estimate(on_24.recipe, LENGTHS, device="l4")
    assert again.fits
    assert again.micro_batch_size == on_24.recipe.training.micro_batch_size


def test_what_is_settled_splits_the_batch_and_keeps_it(on_24: Fitted) -> None:
    training = on_24.recipe.training
    assert isinstance(training.micro_batch_size, int)
    assert training.batch_size == 32
    assert training.batch_size % training.micro_batch_size == 0
    assert on_24.recipe.model.dtype == "bfloat16"
    assert on_24.recipe.model.attn_implementation is None
    assert isinstance(training.gradient_checkpointing, bool)
    assert isinstance(training.eval_batch_size, int)


def test_a_gpu_measures_its_precision_and_a_cpu_has_float32(on_24: Fitted) -> None:
    assert on_24.recipe.training.mixed_precision == "auto"
    small = fit(job("smollm2-135m"), LENGTHS).recipe
    assert (small.model.dtype, small.training.mixed_precision) == ("float32", "no")


def test_what_is_given_stays() -> None:
    given = job("qwen2.5-0.5b", micro_batch_size=2, gradient_checkpointing=True, eval_batch_size=3)
    found = fit(given, LENGTHS, device="h100").recipe.training
    assert (found.micro_batch_size, found.gradient_checkpointing, found.eval_batch_size) == (2, True, 3)


@pytest.mark.parametrize(
    ("path", "device"), [("smollm2-135m", "h200"), ("qwen2.5-0.5b", "l4"), ("llama-3.1-8b", "h100")]
)
def test_an_evaluation_takes_no_more_rows_at_once_than_a_step(path: str, device: str) -> None:
    one = {"batch_size": 8, "micro_batch_size": 1}
    given = recipe(
        {"type": "f_dpo"},
        path,
        training=AUTO | one,
        data={"train": "rows.jsonl", "validation": "held-out.jsonl", "max_length": 512},
    )
    assert fit(given, LENGTHS, device=device).recipe.training.eval_batch_size == 1
    assert without_estimate(given, gpu=True).training.eval_batch_size == 1


def test_more_rows_than_keep_the_device_busy_are_not_taken() -> None:
    found = fit(job("qwen2.5-0.5b"), LENGTHS, device="h200").recipe.training
    assert found.micro_batch_size == 8  # 8 rows x 2 answers x 512 tokens are a full forward


def test_weights_that_train_stay_in_float32() -> None:
    full = job("qwen2.5-0.5b").model_copy(update={"lora": None})
    assert fit(full, LENGTHS, device="h200").recipe.model.dtype == "float32"


def _tiny(gib: float) -> Device:
    small = get("l4")
    return Device(
        **{name: getattr(small, name) for name in Device.__slots__} | {"memory": round(gib * 2**30)}
    )


def test_what_fits_with_another_setting_is_refused_with_it() -> None:
    given = job(micro_batch_size=32, gradient_checkpointing=False)
    with pytest.raises(RecipeError, match=r"does not fit.* GiB.* it fits with micro_batch_size auto"):
        fit(given, LENGTHS, device="h100")


def test_what_fits_nowhere_is_refused_so() -> None:
    with pytest.raises(RecipeError, match="no change of its settings makes it fit"):
        fit(job("llama-3.1-70b"), LENGTHS, device=_tiny(4))


def test_a_model_that_cannot_be_estimated_is_reported() -> None:
    with pytest.raises(EstimateError):
        fit(job("no/such-model"), LENGTHS, device="l4")


@pytest.mark.parametrize("gpu", [True, False])
def test_without_an_estimate_a_forward_is_small(gpu: bool) -> None:
    found = without_estimate(job(), gpu=gpu)
    assert found.training.gradient_checkpointing is gpu
    assert found.training.micro_batch_size == (4 if gpu else 1)  # a quarter of a full forward, rows of 512
