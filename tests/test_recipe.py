"""The recipe schema: what is refused, with which path and sentence."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.errors import RecipeError
from alignkit.methods import METHODS
from alignkit.recipe import Recipe, paths_of

MINIMAL = """
model: {path: some/model}
data: {train: train.jsonl}
method: {type: f_dpo}
output_dir: out
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_reach_any_depth(file: Path) -> None:
    recipe = Recipe.load(
        file, ["method.beta=0.3", "lora=null", "training.max_steps=5", "data.validation=v.jsonl"]
    )
    assert recipe.method.beta == 0.3
    assert recipe.lora is None
    assert recipe.training.max_steps == 5
    assert recipe.data.validation == "v.jsonl"


def test_a_tracker_may_be_given_by_its_name(file: Path) -> None:
    named, written = (
        Recipe.load(file, [f"training.report_to=[{tracker}]"])
        for tracker in ("tensorboard", "{type: tensorboard}")
    )
    assert named == written
    assert [tracker.type for tracker in named.training.report_to] == ["tensorboard"]


def test_the_written_recipe_reads_back_equal(file: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(file, ["method.divergence=alpha_divergence", "method.alpha=0.3"])
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert Recipe.load(again) == recipe


@pytest.mark.parametrize(
    ("override", "path", "words"),
    [
        ("method.beta=0", "method.beta", "expected greater than 0, found 0"),
        ("method.beta=.nan", "method.beta", "finite"),
        ("method.divergence=tv", "method.divergence", "unknown divergence 'tv'"),
        ("method.alpha=0.3", "method.alpha", "reverse_kl has no parameter alpha"),
        ("method.gamma=1", "method.gamma", "unknown key"),
        ("training.report_to=[comet]", "training.report_to.0.type", "expected one of tensorboard, wandb"),
        ("training.report_to=[wandb]", "training.report_to.0.wandb.project", "is required"),
        ("training.report_to=[tensorboard, tensorboard]", "training.report_to", "each tracker once"),
        (
            "method={beta: 0.1}",
            "method.type",
            f"expected one of {', '.join(METHODS)}, or package.module:Class, found None",
        ),
        (
            "method.type=ppo",
            "method.type",
            f"expected one of {', '.join(METHODS)}, or package.module:Class, found 'ppo'",
        ),
        ("method={type: supervised, beta: 0.1}", "method.beta", "unknown key"),
        ("method=3", "method", "dictionary"),
        ("training.batch_size=four", "training.batch_size", "valid integer"),
        ("training.learning_rate=2", "training.learning_rate", "less than or equal to 1"),
        ("lora.r=0", "lora.r", "greater than or equal to 1"),
        ("lora.target_modules=lm_head", "lora.target_modules", "cannot be served"),
        ("seed=-1", "seed", "greater than or equal to 0"),
        ("data.train=null", "data.train", "valid string"),
        ("nonsense", "nonsense", "expected key=value"),
        ("model.path.deep=1", "model.path.deep", "not a section"),
        ("seed=[1", "seed", "not a YAML value"),
    ],
)
def test_what_is_wrong_is_named(file: Path, override: str, path: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file, [override])
    assert caught.value.issues[0].path == path
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "path", "words"),
    [
        ("method.samples_per_prompt=0", "method.samples_per_prompt", "greater than or equal to 1, found 0"),
        ("method.alpha=0", "method.alpha", "greater than 0"),
        ("method.beta=-1", "method.beta", "greater than or equal to 0"),
        ("method.rejected_floor=1", "method.rejected_floor", "less than 0"),
        ("method.logps=max", "method.logps", "'sum' or 'mean'"),
        ("method.top_p=1.5", "method.top_p", "less than or equal to 1"),
        ("method.sampler_url=localhost:8000", "method.sampler_url", "match pattern"),
        ("method.instruction_pool=['']", "method.instruction_pool.0", "at least 1 character"),
        ("method.divergence=reverse_kl", "method.divergence", "unknown key"),
        ("method.ref_refresh_every=3", "method", "cannot be combined with sample_reference"),
        (
            "method.type=ppo",
            "method.type",
            f"expected one of {', '.join(METHODS)}, or package.module:Class, found 'ppo'",
        ),
    ],
)
def test_every_wrong_d2o_option_is_named(file: Path, override: str, path: str, words: str) -> None:
    base = ["method.type=d2o", "method.sample_reference=some/model"]
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file, [*base, override])
    assert caught.value.issues[0].path == path
    assert words in str(caught.value)


def test_every_issue_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: {}\ndata: {train: x}\nmethod: {type: f_dpo, beta: -1}\nextra: 1\n")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert {issue.path for issue in caught.value.issues} == {
        "model.path",
        "method.beta",
        "extra",
        "output_dir",
    }


@pytest.mark.parametrize(
    ("content", "words"), [("- a list", "expected a mapping"), ("{", "not valid YAML"), (None, "cannot read")]
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError, match=words):
        Recipe.load(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_anything_else_is_refused_with_a_recipe_error(values: Any) -> None:
    with pytest.raises(RecipeError):
        Recipe.parse({"model": values})


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*/*.yaml")), ids=str)
def test_every_recipe_that_ships_is_one(path: Path) -> None:
    if path.parent.name != "accelerate":
        assert Recipe.load(path).output_dir.startswith("runs/")


@pytest.mark.parametrize(
    ("override", "path", "nearest"),
    [
        ("training.max_step=3", "training.max_step", "max_steps"),
        ("method.divergance=jeffreys", "method.divergance", "divergence"),
        ("method.bata=0.2", "method.bata", "beta"),
        ("trainning={}", "trainning", "training"),
        ("lora.rr=2", "lora.rr", None),
    ],
)
def test_a_typo_gets_the_nearest_name_suggested(
    file: Path, override: str, path: str, nearest: str | None
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file, [override])
    (issue,) = caught.value.issues
    assert issue.path == path
    assert issue.message == "unknown key" + (f"; did you mean {nearest}?" if nearest else "")


def test_a_mistyped_method_or_divergence_gets_the_nearest_suggested(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"found 'f_dp0'; did you mean f_dpo\?"):
        Recipe.load(file, ["method.type=f_dp0"])
    with pytest.raises(RecipeError, match=r"did you mean jeffreys\?"):
        Recipe.load(file, ["method.divergence=jefreys"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [("DPO", "dpo"), ("F-DPO", "f_dpo"), ("SFT", "supervised"), ("Supervised", "supervised")],
)
def test_a_method_as_other_tools_write_it_gets_its_name_suggested(
    file: Path, written: str, meant: str
) -> None:
    with pytest.raises(RecipeError, match=rf"found '{written}'; did you mean {meant}\?"):
        Recipe.load(file, [f"method.type={written}"])


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ("{max_steps: 010}", 10),
        ("{max_steps: 1_000}", 1000),
        ("{max_steps: 0x10}", 16),
        ("{max_steps: 3.0}", 3),
    ],
)
def test_numbers_are_what_they_look_like(file: Path, training: str, expected: int) -> None:
    assert Recipe.load(file, [f"training={training}"]).training.max_steps == expected


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ("{max_steps: 1:30}", "training.max_steps: expected a valid integer"),
        ("{max_steps: true}", "training.max_steps: expected a number, found true"),
        ("{learning_rate: no}", "training.learning_rate: expected a number, found false"),
        ("{batch_size: 4, batch_size: 8}", "not a YAML value"),
    ],
)
def test_yaml_that_would_be_read_as_another_number_is_refused(
    file: Path, training: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(file, [f"training={training}"])


def test_a_key_that_is_there_twice_is_refused_with_its_place(file: Path) -> None:
    lines = file.read_text().count("\n") + 1
    file.write_text(file.read_text() + "\noutput_dir: elsewhere\n")
    with pytest.raises(RecipeError, match=rf"(?s)found the key 'output_dir' twice.*line {lines + 1}"):
        Recipe.load(file)


def test_keys_and_dates_are_text(file: Path) -> None:
    recipe = Recipe.load(
        file, ["data.columns={on: prompt, no: rejected, 0: chosen}", "output_dir=2024-01-01"]
    )
    assert recipe.data.columns == {"on": "prompt", "no": "rejected", "0": "chosen"}
    assert recipe.output_dir == "2024-01-01"


def test_yaml_may_repeat_a_part_by_reference(file: Path) -> None:
    parts = "{<<: &some {max_steps: 3, batch_size: 2}, batch_size: 4}"
    training = Recipe.load(file, [f"training={parts}"]).training
    assert (training.max_steps, training.batch_size) == (3, 4)


def test_yamls_no_is_a_mixed_precision(file: Path) -> None:
    assert Recipe.load(file, ["training.mixed_precision=no"]).training.mixed_precision == "no"


def test_a_part_of_a_section_that_was_null_makes_it_a_section_again(file: Path) -> None:
    recipe = Recipe.load(file, ["lora=null", "lora.r=4"])
    assert recipe.lora is not None
    assert recipe.lora.r == 4


def test_shipped_recipes_name_no_model_in_a_folder_of_the_working_folder() -> None:
    """The README's import puts models elsewhere; a name finds them there."""
    for path in sorted(Path("recipes").glob("*/*.yaml")):
        recipe = None if path.parent.name == "accelerate" else Recipe.load(path)
        sections = [] if recipe is None else [recipe.model, getattr(recipe.method, "teacher", None)]
        assert not [one.path for one in sections if one is not None and one.path.startswith(".")], path


def test_a_model_may_be_named_as_it_was_imported(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_HOME", str(tmp_path / "home"))
    imported = tmp_path / "home" / "models" / "tiny"
    imported.mkdir(parents=True)
    overrides = ["model.path=tiny", "method={type: sinkd, teacher: {path: tiny}}"]
    recipe = Recipe.load(file, overrides)
    assert recipe.model.path == recipe.method.teacher.path == str(imported)
    assert Recipe.load(file, ["model.path=other"]).model.path == "other"


@pytest.mark.parametrize(
    ("method", "terms", "path", "message"),
    [
        ("f_dpo", [{"type": "robst"}], "terms.0.type", "did you mean robust?"),
        (
            "f_dpo",
            [{"type": "robust", "strenth": 1}],
            "terms.0.strenth",
            "unknown key; did you mean strength?",
        ),
        ("f_dpo", [{"type": "robust"}] * 2, "terms.1.type", "expected robust once, found it twice"),
        (
            "orpo",
            [{"type": "early_learning"}],
            "terms.0.type",
            "early_learning adds an extra loss of the rows, but orpo takes only weights of the rows or a loss of",
        ),
        ("simpo", [{"type": "thresholds"}], "terms.0.type", "and simpo has none"),
        (
            "supervised",
            [{"type": "robust"}],
            "terms.0.type",
            "robust adds weights of the rows, but supervised takes",
        ),
        (
            "d2o",
            [{"type": "align_groups"}],
            "terms.0.type",
            "align_groups adds an extra loss of the rows, but d2o takes only weights of the rows or a loss of",
        ),
        ("f_dpo", [{"type": "anchor"}], "terms.0.data", "or data.validation to measure on; found neither"),
        (
            "f_dpo",
            [{"type": "early_learning"}, {"type": "robust", "strength": 1}],
            "terms.1.strength",
            "expected at least 2 beside it, found 1",
        ),
    ],
)
def test_a_term_is_refused_at_its_place(method: str, terms: Any, path: str, message: str) -> None:
    values = {"model": {"path": "m"}, "data": {"train": "t"}, "method": {"type": method}, "output_dir": "o"}
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(values | {"terms": terms})
    (issue,) = caught.value.issues
    assert issue.path == path
    assert message in issue.message


def test_terms_survive_the_resolved_recipe(tmp_path: Path) -> None:
    values = {"model": {"path": "m"}, "data": {"train": "t"}, "method": {"type": "f_dpo"}, "output_dir": "o"}
    recipe = Recipe.parse(values | {"terms": [{"type": "robust", "strength": float("inf")}]})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "r.yaml").terms == recipe.terms


def test_only_pairs_are_flipped() -> None:
    values = {"model": {"path": "m"}, "data": {"train": "t", "flip": {}}, "output_dir": "o"}
    assert Recipe.parse(values | {"method": {"type": "f_dpo"}}).data.flip.share == 0.2
    with pytest.raises(RecipeError, match="found supervised, whose rows are completion"):
        Recipe.parse(values | {"method": {"type": "supervised"}})


def test_the_folders_of_terms_are_among_a_recipes_paths() -> None:
    values = {"terms": [{"type": "repel", "adapters": ["/a", "/b"]}, {"type": "anchor", "data": "/c"}]}
    assert list(paths_of(values)) == [
        (("terms", "0", "adapters", "0"), "/a"),
        (("terms", "0", "adapters", "1"), "/b"),
        (("terms", "1", "data"), "/c"),
    ]
