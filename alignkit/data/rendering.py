"""Reports, statistics and previews for a terminal."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alignkit.data.preview import RowPreview, Segment
from alignkit.data.statistics import DatasetStatistics
from alignkit.data.validation import FileReport


def render_report(name: str, report: FileReport) -> RenderableType:
    """The report of a check."""
    return Text(f"{name}: {report.summary()}", style="green" if report.ok else "red")


def render_statistics(found: DatasetStatistics) -> RenderableType:
    """Lengths as a table, the rest as lines."""
    lengths = Table("tokens", "p50", "p90", "p99", "max")
    for label, row in (
        ("prompt", found.prompt),
        ("chosen", found.chosen),
        ("rejected", found.rejected),
        ("prompt and longer answer", found.total),
    ):
        lengths.add_row(label, str(row.p50), str(row.p90), str(row.p99), str(row.maximum))
    lines = [
        f"cut at {found.max_length} tokens: {found.truncated} rows ({found.truncated / found.rows:.1%})",
        f"dropped, the prompt alone is that long: {found.prompt_fills}",
        f"chosen equal to rejected: {found.identical}",
        f"duplicate rows: {found.duplicates}; rows with a prompt seen before: {found.duplicate_prompts}",
        f"rows the validation file has too: {found.overlap}; prompts it has too: {found.prompt_overlap}",
    ]
    return Group(lengths, *lines)


def render_preview(title: str, preview: RowPreview) -> RenderableType:
    """Both sequences: loss in green, context dim, what truncation cuts struck through."""
    return Group(
        Panel(_text(preview.chosen), title=f"{title} · chosen", title_align="left"),
        Panel(_text(preview.rejected), title=f"{title} · rejected", title_align="left"),
    )


def _text(segments: list[Segment]) -> Text:
    text = Text()
    for segment in segments:
        style = "strike red" if segment.cut else "green" if segment.carries_loss else "dim"
        text.append(segment.text, style=style)
    counts = [f"{segment.tokens} {_kind(segment)}" for segment in segments]
    return text.append(f"\n[{', '.join(counts)}]", style="italic")


def _kind(segment: Segment) -> str:
    return "cut" if segment.cut else "with loss" if segment.carries_loss else "context"
