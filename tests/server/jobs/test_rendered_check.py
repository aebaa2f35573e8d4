"""A job is refused for what the model's chat template makes of its rows, as `alignkit data check` says it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import trl
from openai import OpenAI

from alignkit_server.jobs import preparation
from tests.server.support import BASE_MODEL, TINY_CONFIG, Running, create_job, method, serve, upload
from tests.tiny import build_tiny_tokenizer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("home")) as running:
        folder = running.settings.models_dir / BASE_MODEL
        tokenizer = build_tiny_tokenizer(folder)
        tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "gemma.jinja").read_text()
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(TINY_CONFIG)
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


def test_rows_that_are_held_out_too_are_found_by_what_is_trained(client: OpenAI) -> None:
    held_out = rows(PAIR | {"chosen": "yes \n"}, PAIR | {"prompt": [{"role": "user", "content": "another"}]})
    files = {"training_file": upload(client, rows(PAIR)), "validation_file": upload(client, held_out)}
    job = create_job(client, method=method(), **files)
    said = {event.message for event in client.fine_tuning.jobs.list_events(job.id).data}
    words = "In the training file: the validation file also has 1 of its different"
    assert {f"{words} rows", f"{words} prompts"} <= said


SYSTEM = PAIR | {"prompt": [{"role": "system", "content": "be kind"}, *PAIR["prompt"]]}


def test_a_job_may_name_a_template_in_place_of_the_models(client: OpenAI) -> None:
    file = upload(client, rows(SYSTEM, PAIR))
    job = create_job(client, training_file=file, method=method(chat_template="qwen3"))
    assert job.method.f_dpo["hyperparameters"]["chat_template"] == "qwen3"


def test_a_typo_in_a_templates_name_is_told_the_nearest(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean qwen3") as caught:
        create_job(client, method=method(chat_template="qwem3"))
    assert caught.value.param == "method.f_dpo.hyperparameters.chat_template"


def test_the_servers_own_template_is_named_like_trls(client: OpenAI, service: Running) -> None:
    folder = service.settings.templates_dir
    folder.mkdir(exist_ok=True)
    (folder / "house.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    )
    job = create_job(
        client, training_file=upload(client, rows(SYSTEM, PAIR)), method=method(chat_template="house")
    )
    assert service.ledger.get(job.id).recipe["model"]["chat_template"] == str(folder / "house.jinja")


def test_bad_rows_within_the_limit_are_left_out_counted_and_listed(client: OpenAI) -> None:
    file = upload(client, rows(PAIR, SYSTEM, PAIR, {"prompt": 3}))
    with pytest.raises(openai.BadRequestError, match="at most 1 invalid rows may be skipped"):
        create_job(client, training_file=file, method=method(skip_bad=1))
    job = create_job(client, training_file=file, method=method(skip_bad=2))
    said = "\n".join(event.message for event in client.fine_tuning.jobs.list_events(job.id).data)
    assert "2 of 4 rows are invalid and skipped" in said
    assert "line 2: the model's chat template refuses" in said
    assert "In the training file: line 4" in said


def test_columns_are_renamed_to_those_of_a_form(client: OpenAI) -> None:
    file = upload(client, rows(*({"question": "q", "good": "yes", "bad": "no"} for _ in range(4))))
    columns = {"question": "prompt", "good": "chosen", "bad": "rejected"}
    job = create_job(client, training_file=file, method=method(columns=columns))
    assert job.method.f_dpo["hyperparameters"]["columns"] == columns


def test_a_share_of_the_prompts_is_held_out_in_place_of_a_file(client: OpenAI, service: Running) -> None:
    job = create_job(client, training_file=upload(client), method=method(validation_split=0.25))
    recipe = service.ledger.get(job.id).recipe
    assert recipe["data"]["validation"] == 0.25
    assert recipe["training"]["eval_steps"]


def test_a_model_whose_adapters_are_not_served_is_refused_before_it_trains(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "serves_adapters", lambda config: False)
    monkeypatch.setattr(preparation, "config_of", lambda folder: {"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(openai.BadRequestError, match="no LoRA adapters of GPT2LMHeadModel") as caught:
        create_job(client)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_servable")
    create_job(client, method=method(trained_weights="all"))


def test_a_mixture_of_experts_is_accepted_but_no_adapters_on_its_experts(
    client: OpenAI, service: Running
) -> None:
    folder = service.settings.models_dir / "tiny-moe"
    folder.mkdir(exist_ok=True)
    more = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}
    (folder / "config.json").write_text(json.dumps(json.loads(TINY_CONFIG) | more))
    job = create_job(client, model="tiny-moe")
    assert job.method.f_dpo["hyperparameters"]["lora_target_modules"] == "all-linear"
    with pytest.raises(
        openai.BadRequestError, match="no adapters of a mixture's experts, found w1, w2"
    ) as caught:
        create_job(client, model="tiny-moe", method=method(lora_target_modules=["q_proj", "w1", "w2"]))
    assert caught.value.param == "method.f_dpo.hyperparameters.lora_target_modules"


def test_a_base_url_without_its_version_is_told(client: OpenAI, service: Running) -> None:
    with service.http(client.api_key) as http:
        told = http.get("/models").json()["error"]["message"]
    assert "Did you mean /v1/models? The client's base_url ends with /v1." in told
