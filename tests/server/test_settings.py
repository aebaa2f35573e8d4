"""Settings of the service from the environment: mistakes are sentences that name the variable."""

import pytest

from alignkit.errors import AlignkitError
from alignkit_server.settings import load_settings, unknown_variables


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ALIGNKIT_PORT", "abc", "ALIGNKIT_PORT: expected a valid integer"),
        (
            "ALIGNKIT_ENGINE__MAX_MODEL",
            "1",
            "ALIGNKIT_ENGINE__MAX_MODEL: unknown key; did you mean max_model_len?",
        ),
        ("ALIGNKIT_EXECUTOR", "slurm", "ALIGNKIT_EXECUTOR: expected 'local' or 'ray', found 'slurm'"),
        ("ALIGNKIT_LIMITS", "{", "limits"),
    ],
)
def test_a_bad_setting_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(AlignkitError) as caught:
        load_settings()
    assert sentence in str(caught.value)


def test_null_takes_a_limit_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_RUN_RETENTION_DAYS", "null")
    monkeypatch.setenv("ALIGNKIT_LIMITS__FILE_BYTES", "null")
    settings = load_settings()
    assert (settings.run_retention_days, settings.limits.file_bytes) == (None, None)
    assert settings.limits.disk_bytes == 2**40


def test_an_unknown_variable_is_told_with_the_nearest_name() -> None:
    environment = {
        "ALIGNKIT_TRAINING_SLOT": "8",
        "ALIGNKIT_ENGINE__URLS": "{}",
        "ALIGNKIT_LOGITS": "bf16",
        "HOME": "/",
    }
    assert unknown_variables(environment) == [
        "ALIGNKIT_TRAINING_SLOT is not a setting and does nothing; did you mean ALIGNKIT_TRAINING_SLOTS?"
    ]
