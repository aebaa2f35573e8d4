"""What a run's report says about its data: counted from the sequences that are trained on, while they are at hand."""

from dataclasses import asdict

from alignkit.data.dataset import Part
from alignkit.data.report import Statistics
from alignkit.data.schemas import schema_for
from alignkit.estimate import count_lengths, trained_rows
from alignkit.recipe import Recipe
from alignkit.run import facts
from alignkit.run.folder import RunFolder


def keep_data(recipe: Recipe, folder: RunFolder, parts: list[Part]) -> None:
    """Keep statistics of the run's parts, and the lengths of its training rows, if a report is wanted.

    `parts` are the rows to train on, and those held out if there are any.
    """
    if not facts.wanted() or not all(part.rows for part in parts):
        return
    method, most = type(recipe.method), recipe.data.max_length
    counted = []
    for part in parts:
        statistics = Statistics(schema_for(method), most)
        for row, sequences in zip(part.rows, part.sequences, strict=True):
            statistics.add(row, sequences)
        counted.append(statistics)
    found = [counted[0].result(*counted[1:]), *(one.result() for one in counted[1:])]
    lengths = count_lengths(trained_rows(parts[0].sequences, method), most)
    facts.keep(
        folder,
        data=[{"file": part.name, **asdict(one)} for part, one in zip(parts, found, strict=True)],
        lengths=lengths and asdict(lengths),
    )
