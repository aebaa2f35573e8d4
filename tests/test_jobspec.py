"""From a job's hyperparameters to a recipe: bounds, auto, and the names of what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.errors import RecipeError
from alignkit.jobspec import JobSpec, recipe_for_job, settled
from alignkit.losses import PairLogps
from alignkit.methods import FDPO, METHODS, ModelSource
from alignkit.methods.hyperparameters import models_of_terms
from alignkit.run.folder import RunFolder
from alignkit.settling import settle_evaluations
from tests.jobs import no_models

pytestmark = pytest.mark.usefixtures("without_amx")

PREFIX = "method.f_dpo.hyperparameters"


WITHOUT_MODELS: dict[str, Any] = {
    "method": "f_dpo",
    "start": ModelSource("models/base"),
    "train_file": Path("train"),
    "validation_file": Path("validation"),
    "train_rows": 240,
    "seed": 3,
    "output_dir": Path("out"),
}


def spec(hyperparameters: dict[str, Any], rows: int = 240, method: str = "f_dpo", **options: Any) -> JobSpec:
    return recipe_for_job(
        method=method,
        hyperparameters=hyperparameters,
        start=ModelSource("models/base"),
        train_file=Path("train"),
        validation_file=Path("validation"),
        train_rows=rows,
        seed=3,
        output_dir=Path("out"),
        resolve_model=no_models,
        **options,
    )


BY_MEMORY = {"micro_batch_size", "gradient_checkpointing", "eval_batch_size", "attn_implementation"}
"""What the rows and the device's memory decide, after the recipe is made."""


def _auto(resolved: JobSpec) -> set[str]:
    """The hyperparameters that still say auto."""
    return {name for name, value in resolved.hyperparameters.items() if value == "auto"}


@pytest.mark.parametrize("rows", [1, 3, 10, 240, 5_000, 1_000_000])
def test_auto_is_resolved_for_any_number_of_rows(rows: int) -> None:
    resolved = spec({}, rows)
    assert _auto(resolved) == BY_MEMORY
    assert 1 <= resolved.hyperparameters["batch_size"] <= min(32, rows)
    assert resolved.recipe.training.batch_size == resolved.hyperparameters["batch_size"]


def test_what_is_given_reaches_the_recipe() -> None:
    resolved = spec(
        {
            "beta": 0.2,
            "divergence": "alpha_divergence",
            "alpha": 0.7,
            "n_epochs": 2,
            "batch_size": 8,
            "learning_rate_multiplier": 2,
            "lora_rank": 8,
            "sft_weight": 1,
            "eval_interval": 5,
        }
    )
    recipe = resolved.recipe
    assert (recipe.method.beta, recipe.method.divergence, recipe.method.alpha) == (
        0.2,
        "alpha_divergence",
        0.7,
    )
    assert recipe.method.sft_weight == 1
    assert recipe.training.learning_rate == pytest.approx(2e-4)
    assert (recipe.training.epochs, recipe.training.eval_steps, recipe.seed) == (2, 5, 3)
    assert recipe.lora is not None
    assert (recipe.lora.r, recipe.lora.alpha) == (8, 16)


def test_the_dtype_is_that_of_where_the_job_trains() -> None:
    assert spec({}, on_gpu=True).recipe.model.dtype == "bfloat16"
    assert spec({}, on_gpu=False).recipe.model.dtype == "float32"


def test_all_weights_are_trained_without_adapters_and_far_slower() -> None:
    resolved = spec({"trained_weights": "all"})
    assert resolved.recipe.lora is None
    assert resolved.recipe.training.learning_rate == pytest.approx(1e-6)
    assert resolved.hyperparameters["trained_weights"] == "all"
    assert not {"lora_rank", "lora_alpha"} & resolved.hyperparameters.keys()
    with pytest.raises(RecipeError, match="lora_rank: only allowed with trained_weights 'lora'"):
        spec({"trained_weights": "all", "lora_rank": 8})


@pytest.mark.parametrize(
    ("hyperparameters", "path", "words"),
    [
        ({"beta": 3}, "beta", "expected 'auto' or less than or equal to 2, found 3"),
        ({"beta": 0}, "beta", "greater than 0"),
        ({"attn_implementation": "quick"}, "attn_implementation", "'auto' or 'eager', 'sdpa'"),
        (
            {"attn_implementation": "flash_attention2"},
            "attn_implementation",
            "did you mean flash_attention_2?",
        ),
        ({"layer_kernels": "ligr"}, "layer_kernels", "expected 'liger', found 'ligr'; did you mean liger?"),
        ({"layer_kernels": "liger"}, "layer_kernels", "liger needs a GPU"),
        ({"torch_compile": "yes"}, "torch_compile", "a valid boolean"),
        ({"torch_compile": True, "lora_nested": {}}, "torch_compile", "expected false with lora.nested"),
        ({"optimizer": "quick"}, "optimizer", "expected one of adamw_torch, "),
        ({"lr_scheduler": "quick"}, "lr_scheduler", "expected one of linear, "),
        ({"lora_target_modules": ["lm_head"]}, "lora_target_modules", "lm_head cannot be served"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "warmup_ratio", "expected without warmup_steps"),
        ({"learning_rate": 0.1, "learning_rate_multiplier": 2}, "", "expected without learning_rate_mult"),
        ({"trained_weights": "all", "quantization": "nf4"}, "", "quantization: only allowed with"),
        ({"beta": "much"}, "beta", "'auto'"),
        ({"n_epochs": 51}, "n_epochs", "less than or equal to 50"),
        ({"batch_size": 10**9}, "batch_size", "less than or equal to 256"),
        ({"batch_size": 4.5}, "batch_size", "integer"),
        ({"n_epochs": True}, "n_epochs", "'auto' or a valid integer, found True"),
        ({"n_epochs": "3"}, "n_epochs", "'auto' or a valid integer, found '3'"),
        ({"n_epochs": 3.0}, "n_epochs", "'auto' or a valid integer, found 3.0"),
        ({"beta": "0.1"}, "beta", "'auto' or a valid number, found '0.1'"),
        ({"learning_rate_multiplier": True}, "learning_rate_multiplier", "a valid number, found True"),
        ({"warmup_steps": "1"}, "warmup_steps", "a valid integer, found '1'"),
        ({"match_curvature": 1}, "match_curvature", "a valid boolean, found 1"),
        ({"learning_rate_multiplier": 0}, "learning_rate_multiplier", "greater than 0"),
        ({"lora_rank": 0}, "lora_rank", "greater than or equal to 1"),
        ({"divergence": "total_variation"}, "divergence", "unknown divergence"),
        ({"divergence": "os:system"}, "divergence", "expected one of reverse_kl"),
        ({"alpha": 0.5}, "alpha", "no parameter alpha"),
        ({"gamma": 1}, "gamma", "unknown key"),
    ],
)
def test_refusals_carry_openais_path(hyperparameters: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        spec(hyperparameters)
    assert [issue.path for issue in caught.value.issues] == [f"{PREFIX}.{path}".rstrip(".")]
    assert words in str(caught.value)


def test_what_recipes_have_reaches_the_recipe() -> None:
    recipe = spec(
        {
            "learning_rate": 3e-5,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.1,
            "weight_decay": 0.01,
            "optimizer": "adamw_8bit",
            "lora_dropout": 0.05,
            "lora_rslora": True,
            "lora_target_modules": ["q_proj", "v_proj"],
            "quantization": "nf4",
            "gradient_checkpointing": True,
            "attn_implementation": "eager",
            "mixed_precision": "bf16",
            "eval_batch_size": 2,
            "dtype": "float16",
        }
    ).recipe
    training, lora, model = recipe.training, recipe.lora, recipe.model
    assert lora is not None
    assert (training.learning_rate, training.lr_scheduler, training.warmup_ratio) == (3e-5, "cosine", 0.1)
    assert (training.weight_decay, training.optimizer, training.eval_batch_size) == (0.01, "adamw_8bit", 2)
    assert (lora.dropout, lora.use_rslora, lora.target_modules) == (0.05, True, ["q_proj", "v_proj"])
    assert (model.quantization, model.attn_implementation, model.dtype) == ("nf4", "eager", "float16")
    assert (training.gradient_checkpointing, training.mixed_precision) == (True, "bf16")


def test_faster_layers_reach_the_recipe_of_a_job_on_another_machine_s_gpu() -> None:
    kernels, compiled = (
        spec({"layer_kernels": "liger"}, on_gpu=True),
        spec({"torch_compile": True}, on_gpu=True),
    )
    assert (kernels.recipe.model.layer_kernels, kernels.hyperparameters["layer_kernels"]) == (
        "liger",
        "liger",
    )
    assert (compiled.recipe.training.torch_compile, compiled.hyperparameters["torch_compile"]) == (True, True)
    assert "layer_kernels" not in compiled.hyperparameters


def test_every_weight_trains_in_float32_on_a_gpu_too() -> None:
    assert spec({"trained_weights": "all"}, on_gpu=True).recipe.model.dtype == "float32"


def test_what_is_settled_later_is_echoed() -> None:
    made = spec({})
    training = made.recipe.training.model_copy(update={"micro_batch_size": 2, "gradient_checkpointing": True})
    echoed = settled(made, made.recipe.model_copy(update={"training": training})).hyperparameters
    assert (echoed["micro_batch_size"], echoed["gradient_checkpointing"]) == (2, True)
    assert echoed["batch_size"] == made.hyperparameters["batch_size"]


def test_an_integer_will_do_for_a_number() -> None:
    resolved = spec({"beta": 1, "learning_rate_multiplier": 2, "lora_alpha": 8, "sft_weight": 0})
    assert (resolved.recipe.method.beta, resolved.recipe.lora.alpha) == (1.0, 8.0)


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(RecipeError) as caught:
        spec({}, method="ppo")
    assert str(caught.value) == f"method.type: expected one of {', '.join(METHODS)}, found 'ppo'"


def test_a_job_cannot_name_a_method_by_import_path() -> None:
    """Importing it would run its code on the server."""
    with pytest.raises(RecipeError, match=r"method\.type: expected one of f_dpo"):
        spec({}, method="tests.methods.own:Margin")


def test_openais_dpo_is_f_dpo_under_the_reverse_kl() -> None:
    resolved = spec({"beta": 0.3, "n_epochs": 1}, method="dpo")
    dpo = resolved.recipe.method
    assert (dpo.type, dpo.beta) == ("dpo", 0.3)
    logps = torch.tensor([[-5.0, -9.0], [-8.0, -7.0], [-6.0, -8.5], [-7.5, -7.0]])
    pairs = PairLogps(*logps, *torch.ones(2, 2))
    same = FDPO(beta=0.3, divergence="reverse_kl").loss(pairs)
    assert torch.equal(dpo.loss(pairs).losses, same.losses)
    assert "divergence" not in resolved.hyperparameters
    with pytest.raises(RecipeError, match=r"method\.dpo\.hyperparameters\.divergence: unknown key"):
        spec({"divergence": "jeffreys"}, method="dpo")


def test_supervised_takes_openais_three() -> None:
    resolved = spec({"n_epochs": 2, "learning_rate_multiplier": 0.5}, method="supervised")
    assert resolved.recipe.method.type == "supervised"
    assert resolved.recipe.training.learning_rate == pytest.approx(1e-4)
    assert resolved.recipe.training.epochs == 2
    assert resolved.hyperparameters["batch_size"] == 4
    assert _auto(resolved) == BY_MEMORY
    with pytest.raises(RecipeError, match=r"method\.supervised\.hyperparameters\.beta: unknown key"):
        spec({"beta": 0.1}, method="supervised")


def test_d2os_auto_is_resolved_and_what_is_given_reaches_the_recipe() -> None:
    resolved = spec(
        {"rejected_floor": -20, "instruction_pool": ["Be kind."], "resample_every": 10}, method="d2o"
    )
    method = resolved.recipe.method
    assert (method.type, method.beta, method.alpha, method.samples_per_prompt) == ("d2o", 0.1, 0.1, 11)
    assert (method.rejected_floor, method.instruction_pool, method.resample_every) == (-20, ["Be kind."], 10)
    echoed = resolved.hyperparameters
    assert (echoed["beta"], echoed["alpha"], echoed["samples_per_prompt"]) == (0.1, 0.1, 11)
    assert spec({"beta": 0, "samples_per_prompt": 3}, method="d2o").recipe.method.samples_per_prompt == 3


@pytest.mark.parametrize(
    ("hyperparameters", "path", "words"),
    [
        ({"samples_per_prompt": 0}, "samples_per_prompt", "'auto' or greater than or equal to 1, found 0"),
        ({"alpha": 0}, "alpha", "'auto' or greater than 0"),
        ({"rejected_floor": 0}, "rejected_floor", "less than 0"),
        ({"divergence": "reverse_kl"}, "divergence", "unknown key"),
        ({"sampler_url": "http://10.0.0.1"}, "sampler_url", "unknown key"),
        ({"sample_reference": "/etc"}, "sample_reference", "unknown key"),
    ],
)
def test_d2os_refusals_carry_openais_path(hyperparameters: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        spec(hyperparameters, method="d2o")
    assert [issue.path for issue in caught.value.issues] == [f"method.d2o.hyperparameters.{path}"]
    assert words in str(caught.value)


def test_a_job_names_its_template_columns_bad_rows_and_held_out_share() -> None:
    data = {
        "columns": {"question": "prompt"},
        "skip_bad": 3,
        "balance_groups": True,
        "validation_split": 0.25,
    }
    resolved = recipe_for_job(
        method="f_dpo",
        hyperparameters={"chat_template": "qwen3", **data},
        start=ModelSource("models/base"),
        train_file=Path("train"),
        validation_file=None,
        train_rows=40,
        seed=3,
        output_dir=Path("out"),
        resolve_model=no_models,
    )
    recipe = resolved.recipe
    assert recipe.model.chat_template == "qwen3"
    assert (recipe.data.columns, recipe.data.skip_bad) == ({"question": "prompt"}, 3)
    assert recipe.data.validation == 0.25
    assert recipe.data.balance_groups
    assert recipe.training.eval_steps is not None
    assert data.items() <= resolved.hyperparameters.items()


def test_a_share_is_not_held_out_beside_a_validation_file() -> None:
    with pytest.raises(RecipeError, match="validation_split: expected none beside a validation file"):
        spec({"validation_split": 0.1})


def test_the_servers_own_templates_come_before_trls(tmp_path: Path) -> None:
    (tmp_path / "house.jinja").write_text("{{ messages }}")
    assert spec({"chat_template": "house"}, templates=tmp_path).recipe.model.chat_template == str(
        tmp_path / "house.jinja"
    )


@pytest.mark.parametrize("name", ["quen3", "../../etc/passwd", "/etc/passwd", ""])
def test_a_template_that_is_no_name_of_one_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{PREFIX}.chat_template: expected"):
        spec({"chat_template": name})


def test_a_model_trains_on_with_the_template_it_was_trained_with() -> None:
    recipe = recipe_for_job(
        method="f_dpo",
        hyperparameters={},
        start=ModelSource("models/base", chat_template="adapters/one/chat_template.jinja"),
        train_file=Path("train"),
        validation_file=None,
        train_rows=40,
        seed=3,
        output_dir=Path("out"),
        resolve_model=no_models,
    ).recipe
    assert recipe.model.chat_template == "adapters/one/chat_template.jinja"


def test_terms_reach_the_recipe_and_are_echoed() -> None:
    resolved = spec({"terms": [{"type": "robust", "over": "groups"}, {"type": "thresholds"}]})
    assert [term.type for term in resolved.recipe.terms] == ["robust", "thresholds"]
    assert resolved.recipe.terms[0].needs_groups
    assert resolved.hyperparameters["terms"][0]["over"] == "groups"
    assert "terms" not in spec({}).hyperparameters


@pytest.mark.parametrize(
    ("method", "term", "path", "message"),
    [
        ("f_dpo", {"type": "robust", "strength": 0}, "terms.0.strength", "greater than 0"),
        ("f_dpo", {"type": "robust", "strength": float("inf")}, "terms.0.strength", "less than or equal to"),
        ("f_dpo", {"type": "a.b:Mine"}, "terms.0.type", "expected one of robust"),
        ("f_dpo", {"type": "robust", "extra": 1}, "terms.0.extra", "unknown key"),
        ("mapo", {"type": "thresholds"}, "terms.0.type", "expected one of robust"),
        (
            "f_dpo",
            {"type": "robust", "over": "groups", "structured": True},
            "terms.0",
            "expected over: rows, found groups",
        ),
    ],
)
def test_a_jobs_term_is_refused_at_its_place(method: str, term: Any, path: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        spec({"terms": [term]}, method=method)
    (issue,) = caught.value.issues
    assert issue.path == f"method.{method}.hyperparameters.{path}"
    assert message in issue.message


def test_a_job_names_the_models_that_it_is_pushed_away_from() -> None:
    def resolve(name: str) -> ModelSource:
        return ModelSource("models/base", adapter=f"adapters/{name}" if name.startswith("ft:") else None)

    given = {"terms": [{"type": "repel", "models": ["ft:a", "ft:b"]}]}
    resolved = recipe_for_job(**WITHOUT_MODELS | {"hyperparameters": given, "resolve_model": resolve})
    assert resolved.recipe.terms[0].adapters == ["adapters/ft:a", "adapters/ft:b"]
    assert models_of_terms(resolved.hyperparameters["terms"]) == ["ft:a", "ft:b"]
    given = {"terms": [{"type": "repel", "models": ["base"]}]}
    with pytest.raises(
        RecipeError, match=r"terms\.0\.models: expected a model that was fine-tuned with LoRA"
    ):
        recipe_for_job(**WITHOUT_MODELS | {"hyperparameters": given, "resolve_model": resolve})
    with pytest.raises(RecipeError, match=r"terms\.0\.adapters: unknown key"):
        spec({"terms": [{"type": "repel", "models": ["ft:a"], "adapters": ["/etc"]}]})


@pytest.mark.parametrize(("rows", "interval", "tokens"), [(16, 12, 16), (240, 60, 48), (20_000, 79, 48)])
def test_auto_evaluations_follow_from_the_rows_and_are_in_the_recipe(
    rows: int, interval: int, tokens: int
) -> None:
    resolved = spec({}, rows, validation_rows=8)
    training, guard = resolved.recipe.training, resolved.recipe.collapse_guard
    assert guard is not None
    assert (resolved.hyperparameters["eval_interval"], guard.max_new_tokens) == (interval, tokens)
    assert training.eval_steps == interval


@pytest.mark.parametrize("rows", [16, 240, 1_111, 20_000])
def test_a_job_and_a_recipe_evaluate_alike(rows: int, tmp_path: Path) -> None:
    job = spec({}, rows, validation_rows=50).recipe
    training = job.training.model_copy(update={"eval_steps": "auto"})
    guard = job.collapse_guard.model_copy(update={"max_new_tokens": "auto"})
    recipe = job.model_copy(update={"training": training, "collapse_guard": guard})
    found = settle_evaluations(recipe, rows, 50, RunFolder(tmp_path), main=False)
    assert (found.training, found.collapse_guard) == (job.training, job.collapse_guard)


def test_a_share_of_the_training_file_counts_as_held_out_rows() -> None:
    split = recipe_for_job(
        **WITHOUT_MODELS
        | {"validation_file": None, "hyperparameters": {"validation_split": 0.5}, "resolve_model": no_models}
    )
    assert (
        split.hyperparameters["eval_interval"]
        == spec({}, validation_rows=240).hyperparameters["eval_interval"]
    )
