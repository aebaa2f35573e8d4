"""`alignkit data draw`: make preference pairs from a model's own answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from alignkit.errors import AlignkitError
from alignkit.home import find_model

if TYPE_CHECKING:  # saves torch at start-up
    from alignkit.pairing import Answerer, Ranker


def draw(
    model: Annotated[
        str,
        typer.Argument(
            help="the model's name at --url; without --url, an imported model, a folder or a hub id"
        ),
    ],
    prompts: Annotated[Path, typer.Argument(help="file of prompts or conversations, or a training file")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="JSON Lines file of pairs to write or to complete")
    ],
    url: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-shaped endpoint that answers, such as a service or vLLM; key: OPENAI_API_KEY"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, max=64, help="answers of a prompt")] = 4,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=2, help="sampling temperature; lower draws likelier answers")
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="share of the likeliest tokens that are drawn from")
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="maximum length of an answer, in tokens")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="seed of the draws")] = 0,
    margin: Annotated[
        float, typer.Option(min=0, help="the best answer of a pair scores more than this above the worst")
    ] = 0.0,
    judge: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-shaped endpoint whose model compares answers")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="the judge's model")] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="folder or hub id of a sequence classifier that scores answers")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="package.module:function that scores an answer, given messages and answer"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be drawn")] = False,
) -> None:
    """Draw answers to prompts, rank them, and write the best and the worst of each prompt as a pair with scores.

    A repeated call continues where an earlier one was interrupted.
    """
    from alignkit.pairing import (
        Drawing,
        SamplingSettings,
        draw_pairs,
        read_prompts,
    )  # saves torch at start-up

    if (judge is None) != (judge_model is None):
        raise AlignkitError("--judge and --judge-model: expected both or neither, found one")
    ways = {"judge": judge_model, "reward model": reward_model, "rule": rule}
    (by, name), *more = [(way, name) for way, name in ways.items() if name is not None] or [("", "")]
    if more or not name:
        raise AlignkitError(
            "expected one of --judge, --reward-model and --rule, found " + ("several" if more else "none")
        )
    found, repeats = read_prompts(prompts)
    settings = SamplingSettings(samples, temperature, top_p, max_tokens, seed)
    drawing = Drawing(out, model, f"{by} {name}", settings, margin).load()
    left = sum(prompt.key not in drawing.records for prompt in found)
    console = Console(stderr=True)
    console.print(
        f"{len(found):,} prompts ({repeats:,} repeats left out), {len(found) - left:,} of them drawn already: "
        f"{left * samples:,} answers to draw{_comparisons(left, samples) if judge else ''}",
        highlight=False,
        soft_wrap=True,
    )
    if dry_run:
        return
    ranker = _ranker(judge, judge_model, reward_model, rule)
    with Progress(console=console) as bar:
        task = bar.add_task("prompts", total=len(found), completed=len(found) - left)
        count = draw_pairs(
            drawing, found, _answerer(model, url), ranker, lambda done, _: bar.update(task, completed=done)
        )
    rest = ", ".join(
        f"{number:,} with {outcome}" for outcome, number in drawing.outcomes().items() if outcome != "pair"
    )
    typer.echo(f"{out}: {count:,} pairs" + (f"; prompts without one: {rest}" if rest else ""))


def _comparisons(prompts: int, samples: int) -> str:
    return f", and up to {prompts * samples * (samples - 1):,} questions to the judge"


def _answerer(model: str, url: str | None) -> "Answerer":
    from alignkit.pairing import EndpointAnswerer, LocalAnswerer  # saves torch at start-up

    return EndpointAnswerer(url, model) if url else LocalAnswerer(find_model(model))


def _ranker(
    judge: str | None, judge_model: str | None, reward_model: str | None, rule: str | None
) -> "Ranker":
    from alignkit.evaluate.judging import Judge  # saves torch at start-up
    from alignkit.evaluate.reward_model import RewardModel
    from alignkit.pairing import JudgeRanker, RewardRanker, RuleRanker

    if judge and judge_model:
        asked = Judge(judge, judge_model)
        asked.try_out()
        return JudgeRanker(asked)
    return RewardRanker(RewardModel(find_model(reward_model))) if reward_model else RuleRanker(rule or "")
