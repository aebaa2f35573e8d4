"""The `alignkit` command. Every error is one readable line; `--debug` shows the traceback."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from alignkit import __version__
from alignkit.cli import (
    chat,
    completion,
    data,
    drawing,
    estimates,
    evaluation,
    exports,
    files,
    jobs,
    keys,
    methods,
    models,
    output,
    projects,
    service,
    serving,
    sweeping,
    terms,
    unlearning,
)
from alignkit.errors import AlignkitError
from alignkit.launch import launch_command, require_configuration, run
from alignkit.noise import no_bars_in_files

# Without a terminal, an error of the usage is one line instead of a box.
MARKUP: Literal["rich"] | None = "rich" if sys.stderr.isatty() else None
app = typer.Typer(
    help="Alignment fine-tuning of language models, and the service that serves the result.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
)
GROUPS = {
    "data": data.app,
    "jobs": jobs.app,
    "files": files.app,
    "models": models.app,
    "projects": projects.app,
    "keys": keys.app,
}
for name, group in GROUPS.items():
    app.add_typer(group, name=name)
data.app.command("draw")(drawing.draw)
models.app.command("export")(exports.export_model)
models.app.command("push")(exports.push_model)
app.command("eval")(evaluation.evaluate)
COMMANDS = (
    chat.chat,
    estimates.estimate,
    methods.methods,
    sweeping.sweep,
    terms.terms,
    unlearning.unlearn,
    exports.export,
    serving.serve,
    serving.settings,
    completion.completion,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv
    no_bars_in_files()
    sys.path.append(str(Path.cwd()))  # like `python -m`: a recipe may name a class in the user's own package
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sentence = _sentence(error)
        if debug or sentence is None:
            raise
        output.error(sentence)
        sys.exit(1)


def _sentence(error: Exception) -> str | None:
    """The message for the user, or None for a defect, whose traceback is more useful."""
    if isinstance(error, AlignkitError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:  # of a file, or of the output: the disk is full
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return service.client_error(error)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alignkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Define the options of the `alignkit` command itself."""


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="a recipe, such as recipes/f_dpo/smollm2.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as training.epochs=2")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config-file", "--config_file", help="accelerate configuration, for several GPUs or ZeRO"
        ),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="number of processes; default: the configuration's, or 1")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="resume from the last checkpoint")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="skip invalid rows, at most 10% of all (data.skip_bad=true)")
    ] = False,
) -> None:
    """Train with a recipe."""
    from alignkit.recipe import Recipe  # saves torch at start-up

    overrides = [*(overrides or []), *(["data.skip_bad=true"] if skip_bad else [])]
    Recipe.load(recipe, overrides)  # refuse a bad recipe before torch is loaded
    if config_file is not None:
        require_configuration(config_file)
    command = launch_command(
        recipe, overrides, config_file=config_file, num_processes=num_processes, resume=resume
    )
    raise typer.Exit(run(command))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="run folder: a recipe's output_dir, or a job's folder")],
) -> None:
    """Write a run's report again: report.html and its charts, from the run's folder alone."""
    from alignkit.report import lacking, write_report  # saves torch at start-up
    from alignkit.run.folder import RunFolder, newest

    try:
        typer.echo(write_report(RunFolder(newest(run))))
    except OSError as error:
        raise AlignkitError(f"the report cannot be written: {error}") from error
    if missing := lacking():
        typer.echo(missing, err=True)


@app.command()
def interpolate(
    run: Annotated[Path, typer.Argument(help="run folder: a recipe's output_dir, or a job's folder")],
    amount: Annotated[
        list[float],
        typer.Option(help="share of the trained weights, above 0 and at most 1.5; may be repeated"),
    ],
) -> None:
    """Write a finished run's model between the one before training (0) and the trained one (1)."""
    from alignkit.interpolate_run import interpolate_run  # saves torch at start-up
    from alignkit.run.folder import newest

    for folder in interpolate_run(newest(run), amount):
        print(folder)


@app.command()
def divergences(
    as_json: Annotated[bool, output.as_json("an array of {name, curvature, about}")] = False,
) -> None:
    """List the divergences of f-DPO."""
    from alignkit.divergences import available, get  # saves torch at start-up

    made = [get(name) for name in available()]
    found = [(one.name, one.curvature, (type(one).__doc__ or "").split("\n")[0]) for one in made]
    if as_json:
        names = ("name", "curvature", "about")
        output.show_json([dict(zip(names, one, strict=True)) for one in found])
        return
    output.rows(("name", "f''(1)", "about"), ((name, f"{at_one:g}", about) for name, at_one, about in found))
