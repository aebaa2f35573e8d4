"""The tiny model and its tokenizer, once for all tests of tokens."""

from pathlib import Path
from typing import Any

import pytest

from alignkit.data.tokens import chat_tokenizer
from tests.tiny import build_tiny_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Any:
    return chat_tokenizer(model_dir, field="model")
