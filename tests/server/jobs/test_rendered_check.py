"""A job is refused for what the model's chat template makes of its rows, as `alignkit data check` says it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import trl
from openai import OpenAI

from tests.server.support import BASE_MODEL, Running, create_job, method, serve, upload
from tests.tiny import build_tiny_tokenizer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("home")) as running:
        folder = running.settings.models_dir / BASE_MODEL
        tokenizer = build_tiny_tokenizer(folder)
        tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "gemma.jinja").read_text()
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        yield running


def rows(*pairs: dict[str, Any]) -> bytes:
    return "".join(json.dumps(pair) + "\n" for pair in pairs).encode()


PAIR = {"prompt": [{"role": "user", "content": "q"}], "chosen": "yes", "rejected": "no"}
EQUAL = PAIR | {"rejected": "yes \n"}


def test_a_row_that_the_template_refuses_is_named(client: OpenAI) -> None:
    system = PAIR | {"prompt": [{"role": "system", "content": "be kind"}, *PAIR["prompt"]]}
    with pytest.raises(openai.BadRequestError) as caught:
        create_job(client, training_file=upload(client, rows(PAIR, PAIR, system, PAIR)), method=method())
    assert (caught.value.param, caught.value.code) == ("training_file", "invalid_training_file")
    assert "line 3: the model's chat template refuses the conversation: System role not supported" in str(
        caught.value
    )


def test_pairs_that_are_equal_once_rendered_are_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="every row has chosen equal to rejected"):
        create_job(client, training_file=upload(client, rows(EQUAL, EQUAL)), method=method())


def test_what_is_odd_is_among_the_jobs_first_events(client: OpenAI) -> None:
    job = create_job(client, training_file=upload(client, rows(PAIR, EQUAL)), method=method())
    said = [event.message for event in client.fine_tuning.jobs.list_events(job.id).data]
    assert any(
        "1 of 2 rows has chosen equal to rejected and changes nothing: the first at line 2" in m for m in said
    )
