"""`alignkit settings`: every variable, and no secret."""

import pytest

from alignkit_server.settings import Settings
from alignkit_server.settings_table import rows, without_secrets
from tests.cli.conftest import Run

SECRET = "hunter2-hunter2"


def test_every_setting_has_a_value_a_default_and_a_meaning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_ENGINE__DTYPE", "bfloat16")
    monkeypatch.setenv("ALIGNKIT_LIMITS", '{"file_bytes": null}')
    found = {row["variable"]: row for row in run("settings", "--json").json}
    assert all(row["meaning"] for row in found.values())
    assert found["ALIGNKIT_ENGINE__DTYPE"] == {
        "variable": "ALIGNKIT_ENGINE__DTYPE",
        "value": "bfloat16",
        "default": "auto",
        "is_set": True,
        "meaning": "vLLM's --dtype; auto is float32 without CUDA",
    }
    assert (found["ALIGNKIT_PORT"]["value"], found["ALIGNKIT_PORT"]["is_set"]) == (8000, False)
    assert found["ALIGNKIT_LIMITS__FILE_BYTES"]["value"] is None
    assert found["ALIGNKIT_KERNELS"]["is_set"] is False
    shown = run("settings", "--set").stdout
    assert "ALIGNKIT_ENGINE__DTYPE" in shown
    assert "ALIGNKIT_PORT" not in shown


def test_no_secret_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATABASE_URL": f"postgresql://me:{SECRET}@host/db?password={SECRET}",
        "RATE_LIMIT_STORAGE": f"redis://:{SECRET}@host",
        "RAY__TOKEN": SECRET,
        "ENGINE__URLS": f'{{"m": "http://u:{SECRET}@host"}}',
        "ENGINE__EXTRA_ARGS": f'["--api-key", "{SECRET}", "--hf-token={SECRET}", "--seed", "3"]',
    }.items():
        monkeypatch.setenv(f"ALIGNKIT_{name}", value)
    for done in (run("settings", "--json", key=SECRET), run("settings", key=SECRET)):
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout
    found = {row["variable"]: row["value"] for row in run("settings", "--json", key=SECRET).json}
    assert found["ALIGNKIT_DATABASE_URL"] == "postgresql://***@host/db?password=***"
    assert found["ALIGNKIT_RAY__TOKEN"] == "***"
    assert found["ALIGNKIT_API_KEY"] == "***"
    assert found["ALIGNKIT_ENGINE__EXTRA_ARGS"] == ["--api-key", "***", "--hf-token=***", "--seed", "3"]


def test_a_password_with_an_at_sign_is_hidden_whole() -> None:
    assert without_secrets("postgresql://me:p@ss/w@host/db") == "postgresql://***@host/db"


def test_bad_settings_and_unknown_variables_are_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_TRAINING_SLOT", "8")
    assert "did you mean ALIGNKIT_TRAINING_SLOTS?" in run("settings").stderr
    monkeypatch.setenv("ALIGNKIT_PORT", "abc")
    done = run("settings")
    assert done.returncode == 1
    assert "ALIGNKIT_PORT: expected a valid integer" in done.stderr


def test_the_defaults_of_the_table_are_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in rows(Settings(), {}):
        if not row.is_set:
            assert row.value == row.default, row.variable
