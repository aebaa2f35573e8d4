"""Rendering of reports, statistics and previews for a terminal."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alignkit.data.report import DatasetStatistics, RowPreview, Segment
from alignkit.data.validation import FileReport, count
from alignkit.terminal import visible

CONTEXT, LOSS, CUT = "dim", "green", "strike red"


def render_report(name: str, report: FileReport) -> RenderableType:
    """The report of a check: a coloured headline, then invalid rows and notices."""
    head = Text(visible(f"{name}: {report.headline}"), style="green" if report.ok else "bold red")
    findings = (Text(line) for line in report.findings())
    return Group(head, *findings, *(Text(f"note: {notice}", style="yellow") for notice in report.notices))


def render_statistics(found: DatasetStatistics, *, held_out: bool = True) -> RenderableType:
    """Lengths as a table, counts as lines; yellow marks what can spoil training or its evaluation.

    `held_out`: whether there was a validation file to compare with.
    """
    lengths = Table("tokens")
    for name in ("p50", "p90", "p99", "max"):
        lengths.add_column(name, justify="right")
    longest = "longer answer" if len(found.answers) > 1 else "answer"
    for label, row in (
        ("prompt", found.prompt),
        *found.answers.items(),
        (f"prompt and {longest}", found.total),
    ):
        lengths.add_row(label, *(f"{cell:,}" for cell in (row.p50, row.p90, row.p99, row.maximum)))
    overlaps = (
        _line("rows that are also in the validation file", found.overlap),
        _line("prompts that are also in the validation file", found.prompt_overlap),
    )
    return Group(
        lengths,
        _line(f"cut at {found.max_length:,} tokens", found.truncated, found.truncated_share),
        _line("dropped, no token that carries loss is left", found.dropped, found.dropped_share),
        _line(found.no_signal_words, found.no_signal),
        _line("duplicates of an earlier row", found.duplicates),
        _line("with the prompt of an earlier row", found.duplicate_prompts),
        *(overlaps if held_out else ()),
    )


def render_preview(title: str, preview: RowPreview, *, marks: bool = False) -> RenderableType:
    """Every sequence: tokens with loss in green, context dim, truncated tokens struck through.

    With `marks`, for a pipe, tokens with loss are in [[ ]] and truncated ones in [-- --], and no line is wrapped.
    """
    shown = {
        f"{title} · {side}": _text(segments, marks=marks) for side, segments in preview.sequences.items()
    }
    panels: list[RenderableType] = [
        Text(f"{head}\n{text}\n") if marks else Panel(text, title=Text(head), title_align="left")
        for head, text in shown.items()
    ]
    notes = [f"note: {note}" for note in preview.notes]
    if preview.dropped:
        notes.append(f"{title} is dropped: no token that carries loss is within max_length")
    return Group(*panels, *(Text(visible(note), style="yellow") for note in notes))


def _line(words: str, rows: int, share: float | None = None) -> Text:
    percent = "" if share is None else f" ({share:.1%})"
    return Text(f"{words}: {count(rows)}{percent}", style="yellow" if rows else "")


def _text(segments: list[Segment], *, marks: bool) -> Text:
    text = Text()
    for segment in segments:
        before, after = _MARKS[segment.carries_loss, segment.cut] if marks else ("", "")
        text.append(f"{before}{visible(segment.text)}{after}", style=_look(segment)[1])
    counts = [f"{segment.tokens:,} {_look(segment)[0]}" for segment in segments]
    return text.append(f"\n[{', '.join(counts)}]", style="italic")


_MARKS = {(False, False): ("", ""), (True, False): ("[[", "]]"), (False, True): ("[--", "--]")}
"""(carries loss, is cut) -> the marks around a segment without colour."""


def _look(segment: Segment) -> tuple[str, str]:
    """The label and style of a segment."""
    if segment.cut:
        return "cut", CUT
    return ("with loss", LOSS) if segment.carries_loss else ("context", CONTEXT)
