"""Sizes, times and lines for people."""

import errno
import os

import pytest

from alignkit.cli import output
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (None, ""),
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**60, "1024.0 PiB"),
    ],
)
def test_sizes(count: int | None, words: str) -> None:
    assert output.size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (-3, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert output.duration(seconds) == words


def test_a_table_in_a_pipe_has_one_line_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    output.rows(("name",), [("long " * 100,), ("[red]x",)])
    shown = capsys.readouterr().out
    assert ("long " * 100).strip() in shown
    assert "[red]x" in shown
    assert len(shown.splitlines()) == 6


def test_a_full_disk_under_the_output_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output, "rows", full)
    done = run("divergences")
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_money_of_less_than_a_cent_keeps_two_digits() -> None:
    amounts = [output.money(amount, "EUR") for amount in (1234.5, 0, 0.00123)]
    assert amounts == ["1,234.50 EUR", "0.00 EUR", "0.0012 EUR"]
