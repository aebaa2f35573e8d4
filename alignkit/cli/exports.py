"""`alignkit export`, `alignkit models export` and `models push`: take a trained model away."""

import tempfile
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from alignkit.cli import output
from alignkit.cli.naming import named
from alignkit.cli.service import chunks, connect, get
from alignkit.errors import AlignkitError

HUB = "hub"
Out = Annotated[Path | None, typer.Option(help="folder to write; nothing may be there without --force")]
Quantize = Annotated[
    str,
    typer.Option(help="how GGUF stores weights: auto, f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0"),
]
Force = Annotated[bool, typer.Option("--force", help="replace what is there")]
Form = Annotated[str, typer.Option(help="form that is pushed: adapter, merged, gguf or ollama")]
Repo = Annotated[str | None, typer.Option(help="repository on the hub, such as me/my-model")]
Public = Annotated[bool, typer.Option("--public", help="make a new repository public")]


def export(
    run: Annotated[Path, typer.Argument(help="run folder: a recipe's output_dir; or an unpacked archive")],
    to: Annotated[str, typer.Option(help="adapter, merged, gguf, ollama or hub")],
    out: Out = None,
    quantize: Quantize = "auto",
    step: Annotated[int | None, typer.Option(min=1, help="step of a checkpoint to export instead")] = None,
    force: Force = False,
    repo: Repo = None,
    form: Form = "merged",
    public: Public = False,
) -> None:
    """Export a run's result as merged safetensors, GGUF or for Ollama, or push it to the hub; prints where it is."""
    from alignkit import export as library  # saves transformers at start-up

    options = library.ExportOptions(quantize, report=output.note)
    source = library.source_at(run, step=step)
    if to == HUB:
        repository = library.Repository(_named(repo), private=not public)
        library.prepare(repository, force=force)
        with tempfile.TemporaryDirectory(prefix="alignkit-export-") as scratch:
            folder = library.export(source, form, Path(scratch) / form, options)
            output.say(library.push(folder, repository, force=force))
        return
    name = library.export_name(to, quantize) + (f"-step-{step}" if step else "")
    target = out or run / "export" / name
    output.say(str(library.export(source, to, target, options, force=force)))


def export_model(
    name: Annotated[
        str,
        typer.Argument(help="fine-tuned model of the service, such as ft:base:project::id", callback=named),
    ],
    to: Annotated[str, typer.Option(help="adapter, merged, gguf or ollama")] = "adapter",
    out: Out = None,
    quantize: Quantize = "auto",
    force: Force = False,
) -> None:
    """Download a fine-tuned model from the service in one of the forms of `alignkit export`."""
    from alignkit.export import form_named  # saves transformers at start-up

    form_named(to)
    target = out or Path(name.replace(":", "_"))
    _download(name, to, quantize, target, force=force)
    output.say(str(target))


def push_model(
    name: Annotated[str, typer.Argument(help="fine-tuned model of the service", callback=named)],
    repo: Repo = None,
    form: Form = "merged",
    quantize: Quantize = "auto",
    force: Force = False,
    public: Public = False,
) -> None:
    """Download a fine-tuned model from the service and push it to the hub."""
    from alignkit import export as library  # saves transformers at start-up

    repository = library.Repository(_named(repo), private=not public)
    library.form_named(form)
    get(connect(), _path(name))  # before the hub makes a repository for it
    library.prepare(repository, force=force)
    with tempfile.TemporaryDirectory(prefix="alignkit-export-") as scratch:
        folder = Path(scratch) / form
        _download(name, form, quantize, folder, force=False)
        output.say(library.push(folder, repository, force=force))


def _download(name: str, form: str, quantize: str, target: Path, *, force: bool) -> None:
    """Unpack the archive that the service makes of a model into the folder `target`, whole or not at all."""
    from alignkit.export import whole_or_nothing  # saves transformers at start-up
    from alignkit.export.archive import unpack

    asked = {"form": form} | ({} if quantize == "auto" else {"quantize": quantize})
    with whole_or_nothing(target, force=force) as folder:
        answer = chunks(connect(), f"{_path(name)}/archive", silence=None, **asked)  # silent while it exports
        unpack(answer, folder)


def _path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def _named(repo: str | None) -> str:
    if repo is None:
        raise AlignkitError("expected a repository of the hub: --repo NAME/MODEL")
    return repo
