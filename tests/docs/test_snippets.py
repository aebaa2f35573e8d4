"""Every fenced block of README and docs/ is run, parsed or rendered by a test.

`docs/api.md` runs whole in tests/server/test_api_page.py, as do the scripts of README and docs/migrate.md. The
manifests of docs/deploy.md are rendered in tests/deploy/test_page.py, and its vLLM line is started in
tests/e2e/test_external_engine.py.
"""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser

from alignkit import methods
from alignkit.data import load_rows
from alignkit.recipe import Recipe
from alignkit.sweep import sweep_of
from alignkit.sweep.folder import SweepFolder
from tests.docs.blocks import BLOCKS, Block, commands_of
from tests.tiny import build_tiny_tokenizer
from tests.tree import ROOT

ELSEWHERE = {
    ("docs/api.md", "sh"),
    ("docs/api.md", "python"),
    ("docs/deploy.md", "yaml"),
    ("docs/migrate.md", "diff"),
    ("docs/sweeps.md", "json"),
}
"""Blocks that other tests run."""
TASK = [
    block
    for block in BLOCKS
    if block.page == "docs/evaluation.md" and ("dataset_path" in block.text or '"choices"' in block.text)
]
"""A task of lm-evaluation-harness and a row of it, which tests/e2e/test_harness.py runs."""
SHOWN = {"text", "nginx"}
"""Languages that are only shown: outputs, diagrams, and a proxy's configuration, which its page calls untried."""
FILES = re.compile(r"\b(?:recipes|deploy|docs)/[\w./-]+\w")


def of(*languages: str) -> list[Any]:
    """The blocks of these languages that are not run elsewhere, as parameters of a test."""
    return [
        pytest.param(block, id=str(block))
        for block in BLOCKS
        if block.language in languages and (block.page, block.language) not in ELSEWHERE and block not in TASK
    ]


def test_every_block_is_of_a_language_that_a_test_takes() -> None:
    taken = {"sh", "python", "yaml", "json"} | SHOWN
    left = [str(b) for b in BLOCKS if b.language not in taken and (b.page, b.language) not in ELSEWHERE]
    assert left == []


def make(words: list[str]) -> None:
    """A target of the Makefile."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == []


def accelerate(words: list[str]) -> None:
    """A launch that accelerate takes, of a recipe that is there."""
    assert words[0] == "launch"
    arguments = launch_command_parser().parse_args(words[1:])
    assert (arguments.module, arguments.training_script) == (True, "alignkit.train")
    assert arguments.config_file is None or (ROOT / arguments.config_file).is_file()
    Recipe.model_validate(
        yaml.safe_load((ROOT / arguments.training_script_args[0]).read_text(encoding="utf-8"))
    )


def python(words: list[str]) -> None:
    """An experiment that is there, or the line that tests/e2e/test_external_engine.py starts."""
    assert words[0] == "-m"
    module = words[1]
    if module == "evidence" or module.startswith("evidence."):
        assert importlib.util.find_spec(module) is not None
    else:
        assert module == "vllm.entrypoints.launchers.api_server.entry"


def ray(words: list[str]) -> None:
    """A command that Ray takes, where it is installed."""
    command = pytest.importorskip("ray.scripts.scripts").cli
    context = command.make_context("ray", list(words), resilient_parsing=True)
    name, command, rest = command.resolve_command(context, words)
    command.make_context(name, rest)


def nothing(words: list[str]) -> None:
    """A program that is not ours: the syntax of its line and the files that it names are checked below."""


PROGRAMS = {
    "make": make,
    "accelerate": accelerate,
    "python": python,
    "ray": ray,
    "alignkit": nothing,  # tests/docs/test_site.py parses every line
    **dict.fromkeys([".", "cd", "export", "mkdir", "chmod", "printf", "sed", "docker", "kubectl"], nothing),
    "deploy/kubernetes/make-secrets.sh": nothing,
    "ollama": nothing,  # takes the file that `alignkit export` wrote; not installed where tests run
    "hf": nothing,
}
"""The check of each program that a page calls."""


@pytest.mark.parametrize("block", of("sh"))
def test_a_shell_block_is_well_formed_and_calls_what_is_there(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for program, *words in commands_of(block):
        assert program in PROGRAMS, f"{block}: enter {program} with a check"
        PROGRAMS[program](words)
    missing = [name for name in FILES.findall(block.text) if not (ROOT / name).exists()]
    assert missing == []


SMALLEST: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"train": "train.jsonl"},
    "method": {"type": "f_dpo"},
    "output_dir": "runs/x",
}
"""A recipe to put the pieces into."""


@pytest.mark.parametrize("block", of("yaml"))
def test_a_piece_of_a_recipe_fits_a_recipe(block: Block) -> None:
    piece = yaml.safe_load(block.text)
    varied = piece.pop("sweep", None)
    for section in ("model", "data"):
        piece[section] = SMALLEST[section] | piece.get(section, {})
    assert Recipe.model_validate(SMALLEST | piece)
    if varied is not None:
        sweep = SweepFolder(Path("runs/x"), sweep_of(varied), SMALLEST | piece)
        assert all(sweep.recipe_of(point) for point in sweep.spec.points())


def test_the_task_for_the_harness_is_the_one_that_is_run() -> None:
    task, row = TASK
    tasks = ROOT / "tests" / "evaluate" / "harness" / "tasks"
    assert yaml.safe_load(task.text) == yaml.safe_load((tasks / "words.yaml").read_text(encoding="utf-8"))
    assert row.text.strip() in (tasks / "words.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("block", of("json"))
def test_a_row_is_one_of_a_method_of_its_page(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(block.text, encoding="utf-8")
    page = (ROOT / block.page).read_text(encoding="utf-8")
    named = [name for name in methods.METHODS if f"--method {name} " in page or f"type: {name}" in page]
    assert named, f"{block.page} names no method"
    assert load_rows(file, named[0])


def hidden_states() -> dict[str, Any]:
    """What README's example of the library presupposes: log-probs of answers, and two models' states and heads."""
    draw = torch.Generator().manual_seed(0)
    states = {f"{side}_hidden": torch.randn(3, 8, generator=draw) for side in ("student", "teacher")}
    heads = {f"{side}_head": torch.randn(50, 8, generator=draw) for side in ("student", "teacher")}
    logps = {
        name: -torch.rand(2, generator=draw) for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")
    }
    one = {
        "hidden": states["student_hidden"],
        "head_weight": heads["student_head"],
        "labels": torch.tensor([1, 2, 3]),
    }
    return {**states, **heads, **logps, **one}


def tokenized(tmp_path: Path) -> dict[str, Any]:
    """What docs/data.md's examples presuppose: a row, and a tokenizer that has a chat template."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}\n')
    (row,) = load_rows(tmp_path / "pairs.jsonl", "f_dpo")
    return {"row": row, "tokenizer": build_tiny_tokenizer(tmp_path / "tokenizer")}


def python_of(page: str) -> list[str]:
    return [block.text for block in BLOCKS if (block.page, block.language) == (page, "python")]


def test_the_library_s_example_runs() -> None:
    _, code = python_of("README.md")  # the other is run by tests/server/test_api_page.py
    namespace = hidden_states()
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["costs"].shape == (3, 3)


def test_the_examples_of_data_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = tokenized(tmp_path)
    for code in python_of("docs/data.md"):
        exec(compile(code, "docs/data.md", "exec"), namespace)
    assert [namespace["sequence"].name, len(namespace["dataset"])] == ["rejected", 1]


def test_every_python_block_is_run() -> None:
    pages = {block.page for block in BLOCKS if block.language == "python"}
    assert pages == {"README.md", "docs/api.md", "docs/data.md"}


def test_the_models_of_the_readme_are_those_that_train() -> None:
    known = yaml.safe_load((ROOT / "alignkit" / "models" / "architectures.yaml").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| models |")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", table)
    assert [name for name in named if name not in known["agrees"]] == []
    total = sum(len(known[kind]) for kind in ("agrees", "refused", "not_built"))
    assert f"{len(known['agrees'])} of {total} causal architectures" in table


def test_the_readme_shows_before_it_explains() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    places = [readme.index(mark) for mark in ("![", "```text", "| models |", "\n## ")]
    assert places == sorted(places)
