"""The `alignkit` command as a user types it: exit status, output, and one readable line for every error."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from alignkit.cli import main
from alignkit.cli.estimates import with_rows
from alignkit.cli.job_requests import parameters
from alignkit.estimate.devices import get
from alignkit.recipe import Recipe
from tests.preference import write_pairs
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    build_tiny_model(home / "models" / "tiny")
    write_pairs(home / "pairs.jsonl", 8)
    write_pairs(home / "held-out.jsonl", 4, start=6)
    return home


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `alignkit` in this process, as a user with that home whose service does not answer."""
    for name in [name for name in os.environ if name.startswith("ALIGNKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ALIGNKIT_HOME", str(home))
    monkeypatch.setenv("ALIGNKIT_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "path", [*sys.path])

    def alignkit(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["alignkit", *arguments])
        capsys.readouterr()
        try:
            main()
        except SystemExit as ended:
            return Done(int(ended.code or 0), *capsys.readouterr())
        except Exception:
            traceback.print_exc()  # as the interpreter does
        return Done(1, *capsys.readouterr())

    return alignkit


def test_data_check_counts_tokens_and_overlap(home: Path, run: Run) -> None:
    arguments = ("data", "check", str(home / "pairs.jsonl"), "--model", "tiny", "--max-length", "32")
    done = run(*arguments, "--validation", str(home / "held-out.jsonl"))
    assert done.returncode == 0, done.stderr
    assert "pairs.jsonl: 8 rows, all valid" in done.stdout
    assert "cut at 32 tokens: 8 rows (100.0%)" in done.stdout
    assert "rows that are also in the validation file: 2" in done.stdout


def test_data_check_names_bad_lines_and_exits_with_one(home: Path, run: Run) -> None:
    bad = home / "bad.jsonl"
    bad.write_text('{"prompt": "a", "chosen": "b"}\n')
    done = run("data", "check", str(bad))
    assert done.returncode == 1
    assert "line 1, /rejected: expected the key of a row in TRL's form" in done.stdout


def test_a_hundred_thousand_bad_lines_are_two_sentences(home: Path, run: Run) -> None:
    (home / "hundred.jsonl").write_text('{"neither": "\\u001b[31m"}\nnonsense\n' * 50_000)
    done = run("data", "check", str(home / "hundred.jsonl"))
    assert done.returncode == 1
    head, *findings = done.stdout.splitlines()
    assert head == "hundred.jsonl: 10,000 of the first 10,000 rows cannot be used"
    assert [line.split(":")[0] for line in findings] == [
        "5,000 rows, the first at line 1",
        "5,000 rows, the first at line 2",
    ]


def test_data_check_as_json(home: Path, run: Run) -> None:
    bad = home / "bad.jsonl"
    bad.write_text('{"prompt": "a", "chosen": "b"}\n')
    done = run("data", "check", str(bad), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    (file,) = found.pop("files")
    assert found == {"statistics": None}
    assert (file.keys(), file["name"], file["ok"], file["rows"], file["bad_rows"]) == (
        {"name", "ok", "rows", "bad_rows", "findings", "notices"},
        "bad.jsonl",
        False,
        1,
        1,
    )
    assert file["findings"][0].startswith("line 1, /rejected: expected")
    whole = run("data", "check", str(home / "pairs.jsonl"), "--model", "tiny", "--json")
    assert json.loads(whole.stdout)["statistics"]["rows"] == 8


def test_data_preview_shows_what_carries_loss(home: Path, run: Run) -> None:
    done = run("data", "preview", str(home / "pairs.jsonl"), "--model", "tiny", "--rows", "1")
    assert done.returncode == 0, done.stderr
    assert "It is 0." in done.stdout
    assert "with loss" in done.stdout


def test_a_piped_preview_has_no_box_and_wraps_no_line(home: Path, run: Run) -> None:
    long = ("a long answer that goes on " * 8).strip()
    row = {"prompt": "Why?", "chosen": long, "rejected": "[bold]No"}
    (home / "long.jsonl").write_text(json.dumps(row) + "\n")
    shown = run("data", "preview", str(home / "long.jsonl"), "--model", "tiny").stdout
    assert f"[[{long}<|im_end|>" in shown.splitlines()
    assert "[[[bold]No<|im_end|>" in shown
    assert "│" not in shown


def test_train_refuses_a_bad_recipe_before_it_starts(home: Path, run: Run) -> None:
    recipe = home / "recipe.yaml"
    recipe.write_text("method: {type: f_dpo, beta: -1}\n")
    done = run("train", str(recipe))
    assert done.returncode == 1
    assert "error: model: is required" in done.stderr
    assert "method.beta: expected greater than 0, found -1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("models", "import", "nobody/nothing-at-all"), "is not a packaged model"),
        (("data", "check", "pairs.jsonl", "--method", "ppo"), "unknown method 'ppo'"),
        (("data", "preview", "pairs.jsonl", "--model", "other"), "no model 'other'"),
        (("jobs", "list"), "no API key"),
    ],
)
def test_errors_are_one_line(home: Path, run: Run, arguments: tuple[str, ...], words: str) -> None:
    resolved = [str(home / part) if part == "pairs.jsonl" else part for part in arguments]
    done = run(*resolved)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("--debug", *resolved).stderr


def test_a_service_that_does_not_answer(home: Path, run: Run) -> None:
    (home / "first-key").write_text("sk-x")
    done = run("jobs", "list")
    (home / "first-key").unlink()
    assert done.returncode == 1
    assert "the service does not answer: start it with `alignkit serve`" in done.stderr


def test_divergences_and_models_are_listed(run: Run) -> None:
    assert "squared_hellinger" in run("divergences").stdout
    found = {one["name"]: one for one in json.loads(run("divergences", "--json").stdout)}
    assert found["reverse_kl"].keys() == {"name", "curvature", "about"}
    assert found["reverse_kl"]["curvature"] == 1
    assert run("models", "list").stdout.split() == ["tiny"]


def test_estimate_says_what_fits(run: Run) -> None:
    recipe = str(Path(__file__).parents[1] / "recipes" / "f_dpo" / "llama-3.1-8b.yaml")
    done = run("estimate", recipe, "--device", "h100", "--devices", "8", "--rows", "1000")
    assert done.returncode == 0, done.stderr
    assert "policy: llama-3.1-8b (known shape), 8.03 B parameters, 8.03 B trainable" in done.stdout
    assert done.stdout.startswith("Smallest that fits: 4 x h100")  # the answer comes first
    options = ("--device", "h100", "--devices", "8", "--rows", "1000", "--price", "2")
    whole = run("estimate", recipe, *options, "--stage", "zero3", "--json")
    found = json.loads(whole.stdout)
    (one,) = found["estimates"]
    assert one["cost"] == pytest.approx(one["seconds"] / 3600 * 8 * 2)
    assert [one["stage"] for one in found["estimates"]] == ["zero3"]
    assert found["estimates"][0]["fits"] is True
    assert found["smallest"]["devices"] == 4
    adapters = str(Path(recipe).with_name("smollm2.yaml"))
    shared = run("estimate", adapters, "--device", "h100", "--stage", "zero3", "--json")
    assert [one["devices"] for one in json.loads(shared.stdout)["estimates"]] == [2], shared.stderr


def test_estimate_takes_this_machines_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.estimate.devices._first_gpu", lambda: replace(get("l4"), name="Our GPU"))
    recipe = str(Path(__file__).parents[1] / "recipes" / "f_dpo" / "smollm2.yaml")
    done = run("estimate", recipe, "--devices", "1", "--stage", "single", "--rows", "100")
    assert done.stdout.startswith("Smallest that fits: 1 x Our GPU, single"), done.stderr
    assert (
        "Our GPU"
        not in run("estimate", recipe, "--device", "l4", "--devices", "1", "--stage", "single").stdout
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "h1000"], "error: device: expected one of cpu, h100"),
        (["--device", "h100", "--devices", "128"], "error: devices: expected 1 to 64"),
        (["--device", "h100", "--devices", "0"], "error: devices: expected 1 to 64"),
        (["model.path=nowhere/at/all"], "error: model.path: expected a folder with a config.json"),
    ],
)
def test_estimate_refuses_in_one_line(run: Run, options: list[str], message: str) -> None:
    recipe = str(Path(__file__).parents[1] / "recipes" / "f_dpo" / "llama-3.1-8b.yaml")
    done = run("estimate", recipe, *options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message) or message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tables_have_the_rows_that_fit_where_the_recipe_leaves_them_open() -> None:
    open_ = Recipe.load(Path("recipes/instruct/qwen3-8b-f_dpo.yaml"))
    assert open_.training.batch_size == 32
    rows = [
        with_rows(open_, most, count).training.micro_batch_size
        for most, count in ((3, 1), (2, 32), (2, 5), (2, 0))
    ]
    assert rows == [
        2,
        1,
        "auto",
        "auto",
    ]  # the estimate refuses 5 devices, which do not divide the batch, and 0
    given = Recipe.load(Path("recipes/f_dpo/llama-3.1-8b.yaml"))
    assert with_rows(given, 1, 1) is given


def test_parameters_are_numbers_however_they_are_written() -> None:
    given = ["beta=1e-1", "n_epochs=3", "divergence=jeffreys", "robust=true", "rejected_floor=-1e3"]
    assert parameters(given) == {
        "beta": 0.1,
        "n_epochs": 3,
        "divergence": "jeffreys",
        "robust": True,
        "rejected_floor": -1000.0,
    }
