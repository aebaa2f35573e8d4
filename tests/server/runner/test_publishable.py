"""What a finished run's folder has to publish, and under which variants of its name."""

from pathlib import Path

from alignkit.run.folder import RunFolder
from alignkit_server.catalog.model_catalog import ADAPTER, FULL
from alignkit_server.runner.publishing import publishable


def test_checkpoints_come_by_step_then_strengths_then_the_result(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("checkpoint-10", "checkpoint-9"):
        (folder.checkpoints / name).mkdir(parents=True)
    for name in ("amount-0.25", ".amount-0.5.tmp"):
        (folder.interpolated / name).mkdir(parents=True)
    found = [
        (path.relative_to(tmp_path).as_posix(), variant) for path, variant in publishable(folder, ADAPTER)
    ]
    assert found == [
        ("checkpoints/checkpoint-9", 9),
        ("checkpoints/checkpoint-10", 10),
        ("interpolated/amount-0.25", "amount-0.25"),
        ("adapter", None),
    ]
    assert [path.name for path, variant in publishable(folder, FULL) if variant is None] == ["model"]
