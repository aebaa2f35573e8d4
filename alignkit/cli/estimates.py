"""`alignkit estimate`: estimate a run before it starts."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from alignkit.cli import output

if TYPE_CHECKING:  # saves torch at start-up
    from alignkit.estimate import Estimate, Lengths
    from alignkit.estimate.devices import Device
    from alignkit.recipe import Recipe

GIB = 2**30


def estimate(
    recipe: Annotated[Path, typer.Argument(help="a recipe, such as recipes/f_dpo/smollm2.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as model.path=llama-3.1-70b")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="kind of device, such as h100; cpu is this machine's; default: this machine's GPU, or else its CPU"
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="number of devices; default: the fewest that the recipe fits on")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="sharding, such as ddp, zero3 or fsdp2; default: every one")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="number of rows, if the data file is missing or incomplete")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, envvar="ALIGNKIT_PRICE_PER_GPU_HOUR", help="what an hour of a device costs"),
    ] = None,
    currency: Annotated[
        str, typer.Option(envvar="ALIGNKIT_CURRENCY", help="currency of the price, as it is shown")
    ] = "USD",
    as_json: Annotated[
        bool,
        output.as_json("{smallest, estimates}, both with the memory, time, cost and disk of a configuration"),
    ] = False,
) -> None:
    """Estimate a run's memory by kind, time, cost, disk and tokens, and the smallest configuration that fits."""
    from alignkit import estimate as library  # saves torch at start-up
    from alignkit.estimate.devices import at_hand, get
    from alignkit.recipe import Recipe

    run = Recipe.load(recipe, overrides or [])
    lengths = library.lengths_of(run, rows)
    chosen = at_hand() if device is None else get(device)
    least = library.smallest(run, lengths, device=chosen)
    count = _fewest(run, lengths, chosen, stage, least) if devices is None else devices
    if least is not None and not run.micro_batch_matters:
        run = with_rows(run, least.micro_batch_size, count)
    if stage is None:
        found = library.compare(run, lengths, device=chosen, count=count)
    else:
        found = [library.estimate(run, lengths, device=chosen, count=count, stage=stage)]
    if as_json:
        whole = {
            "smallest": _whole(least, price) if least else None,
            "estimates": [_whole(one, price) for one in found],
        }
        output.show_json(whole)
        return
    output.say(_smallest(least, chosen.name))
    for line in _about(found[0]):
        output.say(line)
    output.show(_memory_table(found))
    output.show(_time_table(found, price, currency))


def with_rows(run: "Recipe", most: int, count: int) -> "Recipe":
    """The recipe with at most so many rows a forward, where it leaves their number to be chosen."""
    batch = run.training.batch_size
    if isinstance(run.training.micro_batch_size, int) or count < 1 or batch % count:
        return run
    share = batch // count
    rows = max(size for size in range(1, most + 1) if share % size == 0)
    return run.model_copy(update={"training": run.training.model_copy(update={"micro_batch_size": rows})})


def _fewest(
    run: "Recipe", lengths: "Lengths", device: "Device", stage: str | None, least: "Estimate | None"
) -> int:
    """The number of devices on which the stage, or any stage, fits; 1 if none does, to show by how much."""
    from alignkit import estimate as library  # saves torch at start-up

    if stage is None:
        return least.devices if least else 1
    found = library.smallest(run, lengths, device=device, stage=stage)
    if found is None:
        raise library.EstimateError(
            f"stage: {stage} fits on no number of {device.name} that divides the batch; see its needs with "
            "--devices 1"
        )
    return found.devices


def _cost(one: "Estimate", price: float | None) -> float | None:
    """The whole run on all its devices; None without a price or a number of steps."""
    return None if price is None or one.seconds is None else one.seconds / 3600 * one.devices * price


def _whole(one: "Estimate", price: float | None) -> dict[str, Any]:
    values = asdict(one)
    return values | {
        "cost": _cost(one, price),
        "fits": one.fits,
        "trainable": one.trainable,
        "step_seconds": values["step_seconds"] | {"step": one.step_seconds.step},
        "disk": values["disk"] | {"total": one.disk.total},
    }


def _about(one: "Estimate") -> list[str]:
    lines = [f"micro_batch_size: {one.micro_batch_size}"]
    for role, model in one.models.items():
        shape = model.shape
        trained = f"{_big(shape.trainable)} trainable" if shape.trainable else "frozen"
        active = "" if shape.active == shape.parameters else f", {_big(shape.active)} of them for a token"
        lines.append(f"{role}: {shape.source}, {_big(shape.parameters)} parameters{active}, {trained}")
    lengths = one.lengths
    rows = "unknown number of rows" if lengths.rows is None else f"{lengths.rows:,} rows"
    found = "assumed, because there is no data file" if lengths.assumed else "counted"
    lines.append(
        f"data: {rows}, sequences of {lengths.mean:.0f} tokens on average, at most {lengths.longest:,} "
        f"({found})"
    )
    steps = "unknown: give max_steps or --rows" if one.steps is None else f"{one.steps:,}"
    lines.append(f"steps: {steps}" + ("" if one.tokens is None else f", {one.tokens:,} tokens"))
    disk = one.disk
    lines.append(
        f"disk: {_gib(disk.total)} GiB: {disk.checkpoints} checkpoint{'s'[: disk.checkpoints != 1]} of "
        f"{_gib(disk.checkpoint)}, result {_gib(disk.result)}"
    )
    return lines


def _memory_table(found: "list[Estimate]") -> Table:
    first = found[0]
    table = _table(f"GiB per device on {first.devices} {first.device.name}, peak of each kind", found)
    for kind in first.memory.kinds:
        sizes = [one.memory.kinds[kind] for one in found]
        if any(sizes):
            table.add_row(kind, *map(_gib, sizes))
    table.add_section()
    table.add_row("peak", *(_gib(one.memory.peak) for one in found))
    if any(one.memory.host for one in found):
        table.add_row("in main memory", *(_gib(one.memory.host) for one in found))
    table.add_row(f"fits {_gib(first.device.usable)}", *("yes" if one.fits else "no" for one in found))
    table.add_row("peak during", *(one.memory.moment for one in found))
    return table


def _time_table(found: "list[Estimate]", price: float | None, currency: str) -> Table:
    table = _table("seconds per step; communication overlaps with computation", found)
    for part in found[0].step_seconds.computing:
        table.add_row(part, *(f"{one.step_seconds.computing[part]:.3g}" for one in found))
    table.add_row("optimizer", *(f"{one.step_seconds.optimizer:.3g}" for one in found))
    table.add_row("communication", *(f"{one.step_seconds.communication:.3g}" for one in found))
    table.add_section()
    table.add_row("step", *(f"{one.step_seconds.step:.3g}" for one in found))
    before = [one.step_seconds.drawing + one.step_seconds.scoring for one in found]
    if any(before):
        table.add_row("before training", *map(output.duration, before))
    table.add_row(
        "whole run", *("?" if one.seconds is None else output.duration(one.seconds) for one in found)
    )
    if price is not None:
        costs = (_cost(one, price) for one in found)
        table.add_row("cost", *("?" if cost is None else output.money(cost, currency) for cost in costs))
    return table


def _table(title: str, found: "list[Estimate]") -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for one in found:
        table.add_column(one.stage.replace("_", " "), justify="right")
    return table


def _smallest(least: "Estimate | None", device: str) -> str:
    if least is None:
        return (
            f"Does not fit on any number of {device}: lower micro_batch_size or max_length, turn on "
            "gradient_checkpointing, or train with LoRA."
        )
    layout = (
        f"{least.devices} x {least.device.name}, {least.stage}, micro_batch_size {least.micro_batch_size}"
    )
    return f"Smallest that fits: {layout}: {_gib(least.memory.peak)} of {_gib(least.device.usable)} GiB."


def _gib(size: float) -> str:
    return f"{size / GIB:.3g}" if size < 1000 * GIB else f"{size / GIB:,.0f}"


def _big(count: int) -> str:
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"
