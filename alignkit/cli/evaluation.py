"""`alignkit eval`: evaluate a run, or run lm-evaluation-harness on a served model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from alignkit.cli import output
from alignkit.cli.service import connect
from alignkit.errors import AlignkitError
from alignkit.home import find_model

if TYPE_CHECKING:  # saves torch at start-up
    from alignkit.evaluate.harness import Counting
    from alignkit.report.evaluation_report import Evaluated


def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            help="run folder: a recipe's output_dir, or a job's folder; with --harness, a served model"
        ),
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(help="after --: further arguments of lm-evaluation-harness, such as --limit 100"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="validation file; default: the recipe's")] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="step of a checkpoint to evaluate instead of the result")
    ] = None,
    answers: Annotated[
        int, typer.Option(min=0, max=10_000, help="held-out prompts that both models answer; 0 for none")
    ] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="maximum length of an answer, in tokens")] = 128,
    judge: Annotated[
        str | None,
        typer.Option(
            help="URL of an OpenAI-shaped endpoint whose model compares answers; key: OPENAI_API_KEY"
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="the judge's model")] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="folder or hub id of a sequence classifier that scores answers")
    ] = None,
    against: Annotated[
        Literal["untrained", "data"], typer.Option(help="answers that the trained model's are compared with")
    ] = "untrained",
    harness: Annotated[
        str | None,
        typer.Option(help="lm-evaluation-harness tasks for the served model RUN: arc_easy, or YAML files"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="tokenizer for --harness: a folder or hub id; default: the base model's"),
    ] = None,
    as_json: Annotated[bool, output.as_json("what evaluation.json holds")] = False,
) -> None:
    """Evaluate the untrained and the trained model of a run on the same validation rows."""
    if harness is not None:
        if as_json:
            raise AlignkitError("--json: expected none with --harness; `-- --output_path FOLDER` writes JSON")
        raise typer.Exit(_harness(run, harness, tokenizer, more or []))
    if more:
        raise AlignkitError(f"{' '.join(more)}: expected further arguments only with --harness")
    from alignkit.evaluate.judging import Judge  # saves torch at start-up
    from alignkit.evaluate.reward_model import RewardModel
    from alignkit.evaluate_answers import Options
    from alignkit.evaluate_run import evaluate_run
    from alignkit.report.evaluation_report import Evaluated, write_evaluation
    from alignkit.run.folder import RunFolder, newest

    if (judge is None) != (judge_model is None):
        raise AlignkitError("--judge and --judge-model: expected both or neither, found one")
    if not answers and (judge or reward_model):
        raise AlignkitError("--answers: expected at least 1 with a judge or a reward model, found 0")
    folder = newest(Path(run))
    Console(stderr=True).print(f"Evaluating the run in {folder}", highlight=False, soft_wrap=True)
    asked = Judge(judge, judge_model) if judge and judge_model else None
    if asked is not None:
        asked.try_out()
    scorer = RewardModel(reward_model) if reward_model else None
    options = Options(answers, max_tokens, asked, scorer, against)
    found = evaluate_run(folder, data=data, step=step, options=options)
    scorer_name = Path(reward_model).name if reward_model else None
    evaluated = Evaluated(step, found.before, found.after, found.answers, judge_model, scorer_name)
    path = write_evaluation(RunFolder(folder), evaluated)
    if as_json:
        typer.echo(json.dumps(evaluated.as_json(folder.resolve().name), ensure_ascii=False, indent=1))
        return
    _show(evaluated)
    Console(stderr=True).print(f"Report: {path}", highlight=False, soft_wrap=True, markup=False)


def _show(found: "Evaluated") -> None:
    from alignkit.report.evaluation_report import measures  # saves torch at start-up

    table = output.table("metric", "untrained", "trained")
    for name, *values in measures(found):
        table.add_row(name, *("-" if value is None else f"{value:.4g}" for value in values))
    output.show(table)
    rated = [by for by in ("judge", "reward_model") if by in found.answers]
    if not rated:
        return
    table = output.table("win rate by", "group", "rate", "95% interval", "wins", "ties", "losses", "invalid")
    groups = {"all": found.answers, **found.answers["groups"]}
    for by in rated:
        for group, values in groups.items():
            one = values[by]
            shown = (
                ("-", "-")
                if one["rate"] is None
                else (f"{one['rate']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}")
            )
            counts = (str(one[kind]) for kind in ("wins", "ties", "losses", "invalid"))
            table.add_row(by.replace("_", " "), group, *shown, *counts)
    output.show(table)


def _harness(model: str, tasks: str, tokenizer: str | None, more: list[str]) -> int:
    from alignkit.evaluate.harness import harness_command, run_harness  # saves torch at start-up

    client = connect()
    base = model.split(":")[1] if model.startswith("ft:") and model.count(":") > 1 else model
    counting = counting_of(tokenizer or find_model(base))
    return run_harness(harness_command(str(client.base_url), model, tasks, counting, more), client.api_key)


def counting_of(tokenizer: str) -> "Counting":
    """How tokens of a model's folder are counted; of a hub id only the name is known. Raises ModelError."""
    from alignkit.evaluate.harness import Counting  # saves torch at start-up
    from alignkit.models.loading import adds_start, load_tokenizer
    from alignkit.models.trainable import config_of, positions_of

    if not (Path(tokenizer) / "config.json").is_file():
        return Counting(tokenizer)
    longest = positions_of(config_of(Path(tokenizer)))
    return Counting(tokenizer, longest, adds_start(load_tokenizer(tokenizer, field="--tokenizer")))
