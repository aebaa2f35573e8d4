"""Options of a job that name a file, and refusals of options that do not fit: each at the job's own name."""

from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import DataError, RecipeError
from alignkit.methods import ModelSource
from alignkit.methods.hyperparameters import files_of_terms
from tests.jobs import job_of


def find(file_id: str) -> Path:
    """The files of a project that has one."""
    if file_id != "file-a":
        raise DataError(f"there is no file {file_id}")
    return Path("files/file-a")


def anchored(**options: Any) -> Any:
    """A job with an anchor."""
    return job_of("f_dpo", find=find, terms=[{"type": "anchor", **options}])


def test_a_job_names_the_file_that_it_must_not_forget() -> None:
    resolved = anchored(data="file-a")
    assert resolved.recipe.terms[0].data == "files/file-a"
    assert files_of_terms(resolved.hyperparameters["terms"]) == ["file-a"]
    assert anchored().recipe.terms[0].data is None
    assert files_of_terms(anchored().hyperparameters["terms"]) == []
    with pytest.raises(RecipeError) as caught:
        anchored(data="/etc/passwd")
    assert str(caught.value) == "method.f_dpo.hyperparameters.terms.0.data: there is no file /etc/passwd"


@pytest.mark.parametrize(
    ("method", "given", "place", "words"),
    [
        ("supervised", {"flip": {}}, "flip", "expected a method of preference rows"),
        ("supervised", {"packing": True}, "packing", "expected false with supervised"),
        ("f_dpo", {"elastic": ["nf4"], "trained_weights": "all"}, "elastic", "expected lora"),
        (
            "f_dpo",
            {"after": [{"type": "truncate_rank", "rank": 99}]},
            "after.0.rank",
            "expected at most lora.r",
        ),
        ("f_dpo", {"lora_nested": {}, "lora_rslora": True}, "lora_nested", "expected without use_rslora"),
        ("f_dpo", {"flip": {}, "tune": ["beta"]}, "tune", "expected without data.flip"),
        (
            "sinkd",
            {"teacher": "t", "solver": "k_sparse", "gradient": "implicit"},
            "gradient",
            "expected envelope",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_at_the_jobs_own_place(
    method: str, given: dict[str, Any], place: str, words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        job_of(method, resolve=lambda _: ModelSource("models/teacher"), **given)
    (issue,) = caught.value.issues
    assert issue.path == f"method.{method}.hyperparameters.{place}"
    assert issue.message.startswith(words)
