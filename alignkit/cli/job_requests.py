"""`alignkit jobs submit | estimate`: a job's request, from files and options."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from alignkit.cli import job_watch, output, service
from alignkit.errors import AlignkitError

LARGE_BYTES = 256 * 2**20
"""A larger file is uploaded in parts."""
PART_BYTES = 32 * 2**20
LISTS = frozenset({"tags"})
"""Settings of an integration that are lists."""

TrainingFile = Annotated[str, typer.Argument(help="a data file, or the id of an uploaded one")]
Model = Annotated[str, typer.Option(help="base model, or a model made by a job")]
Method = Annotated[str, typer.Option(help="training method, such as f_dpo or supervised")]
ValidationFile = Annotated[str | None, typer.Option(help="a data file, or the id of an uploaded one")]
ValidationShare = Annotated[
    float | None,
    typer.Option(help="share of the training file's prompts to hold out instead, such as 0.05"),
]
Parameters = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="hyperparameter as name=value; repeatable")
]
Labels = Annotated[list[str] | None, typer.Option("--metadata", help="label as name=value; repeatable")]


def submit(
    training_file: TrainingFile,
    model: Model,
    method: Method = "f_dpo",
    validation_file: ValidationFile = None,
    validation_share: ValidationShare = None,
    param: Parameters = None,
    suffix: Annotated[str | None, typer.Option(help="suffix of the new model's name")] = None,
    serving: Annotated[
        str | None,
        typer.Option(help="how the result is served: adapter, merged or merged_fp8 (an engine of its own)"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of every random choice")] = None,
    metadata: Labels = None,
    integration: Annotated[
        list[str] | None,
        typer.Option(
            help="tracker to report to, such as tensorboard or wandb:project=demo,tags=nightly; repeatable"
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="follow the job until it ends")] = False,
) -> None:
    """Upload the files and create a job; prints its id."""
    optional = {
        "suffix": suffix,
        "seed": seed,
        "metadata": labels_of(metadata) or None,
        "integrations": [integration_of(text) for text in integration or ()] or None,
        "extra_body": {"serving": serving} if serving else None,
    }
    rest = method_of(method, param, validation_share, validation_file)
    rest |= {name: value for name, value in optional.items() if value is not None}
    client = service.connect()
    require_known(client, model, method)
    with uploaded(client, training_file, validation_file) as files:
        once = {"Idempotency-Key": secrets.token_hex()}  # the client asks again if an answer is lost
        job = client.fine_tuning.jobs.create(model=model, **files, **rest, extra_headers=once)
    output.say(job.id)
    if follow:
        job_watch.watch(job.id)


def estimate(
    training_file: TrainingFile,
    model: Model,
    method: Method = "f_dpo",
    validation_file: ValidationFile = None,
    validation_share: ValidationShare = None,
    param: Parameters = None,
    as_json: Annotated[bool, output.as_json("the API's estimate object")] = False,
) -> None:
    """Estimate a job's steps, tokens, time, cost and memory at the service, without creating it."""
    rest = method_of(method, param, validation_share, validation_file)
    client = service.connect()
    require_known(client, model, method)
    with uploaded(client, training_file, validation_file, keep=False) as files:
        found = service.post(client, "/fine_tuning/jobs/estimate", {"model": model, **files, **rest})
    if as_json:
        output.show_json(found)
        return
    memory, seconds = found["memory"], found["seconds"]
    basis = f"{found['based_on_jobs']} earlier jobs" if found["based_on_jobs"] else "the device's data sheet"
    output.facts(
        [
            ("rows", f"{found['rows']:,}"),
            ("dropped rows", f"{found['dropped_rows']:,}" if found["dropped_rows"] else ""),
            ("steps", f"{found['steps']:,}"),
            ("tokens", f"{found['tokens']:,}"),
            ("time", "unknown" if seconds is None else f"{output.duration(seconds)}, by {basis}"),
            ("cost", _cost(found["cost"]) if found.get("cost") else ""),
            ("queue", f"{found['queue_position']}. if created now"),
            ("memory", _memory(memory) if memory else "not estimated"),
            ("checkpoint", output.size(memory["checkpoint_bytes"]) if memory else ""),
            ("fits", {True: "yes", False: "no", None: ""}[found["fits"]]),
        ]
    )


def _cost(cost: dict[str, Any]) -> str:
    amount, price = (output.money(cost[name], cost["currency"]) for name in ("amount", "per_gpu_hour"))
    each = f" for each of {cost['gpus']} GPUs" if cost["gpus"] > 1 else ""
    return f"{amount}, at {price} an hour{each}"


def _memory(memory: dict[str, Any]) -> str:
    peak, available = output.size(memory["peak_bytes"]), output.size(memory["available_bytes"])
    return f"{peak} of {available} on {memory['device']}, at its peak during {memory['peak_during']}"


def require_known(client: Any, model: str, method: str) -> None:
    """Raise an error unless the service has the model and the method, before a file travels there for nothing."""
    from openai import PermissionDeniedError  # saves openai at start-up

    known = [str(one["id"]) for one in service.get(client, "/fine_tuning/methods")["data"]]
    if method not in known:
        from alignkit.methods.registry import nearest_method  # saves torch at start-up

        raise AlignkitError(
            f"--method: expected one of {', '.join(known)}, found {method!r}{nearest_method(method)}"
        )
    with suppress(PermissionDeniedError):  # a key that may train need not see models
        client.models.retrieve(model)


def method_of(
    method: str, param: list[str] | None, share: float | None, validation_file: str | None
) -> dict[str, Any]:
    """The `method` of a job's request. Raises AlignkitError for a share that is none or beside a file."""
    hyperparameters = parameters(param or [])
    if share is not None:
        if validation_file is not None:
            raise AlignkitError("--validation-share: expected without --validation-file, found both")
        if not 0 < share < 1:
            raise AlignkitError(f"--validation-share {share:g}: expected a share above 0 and below 1")
        hyperparameters["validation_split"] = share
    return {"method": {"type": method, method: {"hyperparameters": hyperparameters}}}


def parameters(pairs: list[str]) -> dict[str, Any]:
    """The hyperparameters given as name=value texts."""
    given = (pair("--param", text, "beta=0.1") for text in pairs)
    return {name: value_of("--param", text) for name, text in given}


def labels_of(pairs: list[str] | None) -> dict[str, str]:
    """The labels given as name=value texts."""
    return dict(pair("--metadata", text, "team=a") for text in pairs or ())


def integration_of(text: str) -> dict[str, Any]:
    """The integration given as a tracker's name and its settings: wandb:project=demo,tags=a,tags=b."""
    kind, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, value = pair(f"--integration {text}", part, "wandb:project=demo")
        if name in LISTS:
            settings.setdefault(name, []).append(value)
        else:
            settings[name] = value
    return {"type": kind} | ({kind: settings} if settings else {})


def pair(option: str, text: str, example: str) -> tuple[str, str]:
    """The name and value of an option's text name=value. Raises AlignkitError for any other text."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise AlignkitError(f"{option} {text}: expected name=value, such as {example}")
    return name, value


def value_of(option: str, text: str) -> Any:
    """A JSON or YAML value; YAML alone reads 1e-3 as text, which no numeric option accepts.

    Raises AlignkitError for what is neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AlignkitError(f"{option}: expected a JSON or YAML value, found {text!r}") from error


@contextmanager
def uploaded(
    client: Any, training_file: str, validation_file: str | None, *, keep: bool = True
) -> Iterator[dict[str, str]]:
    """Upload what is not uploaded yet, and give the fields of a request that name the files.

    Uploaded files are deleted if the request is refused, or afterwards unless `keep`.
    """
    given = {"training_file": training_file, "validation_file": validation_file}
    paths = {name: _file(text) for name, text in given.items() if text is not None}
    uploaded: list[str] = []
    done = False
    try:
        fields = {}
        for name, path in paths.items():
            if isinstance(path, Path):
                fields[name] = _upload(client, path)
                uploaded.append(fields[name])
            else:
                fields[name] = path
        yield fields
        done = True
    finally:
        if not (done and keep):
            for file_id in uploaded:
                with suppress(Exception):  # the first error is the one to show
                    client.files.delete(file_id)


def _file(text: str) -> Path | str:
    """A file of this machine, or the id of an uploaded one. Raises AlignkitError for anything else."""
    path = Path(text)
    if path.is_file():
        return path
    if text.startswith("file-") and not path.exists():
        return text
    raise AlignkitError(f"{text}: expected a data file, or the id of an uploaded file (file-…)")


def _upload(client: Any, path: Path) -> str:
    if path.stat().st_size <= LARGE_BYTES:
        return str(client.files.create(file=path, purpose="fine-tune").id)
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=PART_BYTES
    )
    return str(upload.file.id)
