"""Every job that cannot be: the status, the parameter, a sentence that helps, and nothing left behind."""

import gzip
import json
import shutil
from typing import Any

import openai
import pytest
from openai import OpenAI
from safetensors.torch import load_file, save_file

from tests.server.support import BASE_MODEL, Running, create_job, method, pairs, upload
from tests.tiny import build_tiny_model


@pytest.fixture
def untouched(service: Running, client: OpenAI) -> Any:
    """Nothing is stored or started in the test's project."""
    enqueued = len(service.runner.enqueued)
    yield
    assert client.fine_tuning.jobs.list().data == []
    assert len(service.runner.enqueued) == enqueued


def refusal(client: OpenAI, **changes: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as refused:
        create_job(client, **changes)
    return refused.value


WANDB = {"type": "wandb", "wandb": {"project": "p"}}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("changes", "status", "param", "words"),
    [
        ({"model": "gpt-99"}, 404, "model", ["gpt-99", BASE_MODEL]),
        ({"model": "../x"}, 404, "model", ["../x"]),
        ({"training_file": "file-unknown"}, 404, "training_file", ["No such file: 'file-unknown'"]),
        ({"validation_file": "file-unknown"}, 404, "validation_file", ["file-unknown"]),
        ({"method": {"type": "ppo"}}, 400, "method.type", ["'ppo'", "f_dpo"]),
        ({"method": {}}, 400, "method.type", ["Missing"]),
        ({"method": {"type": "f_dpo", "dpo": {}}}, 400, "method.dpo", ["'f_dpo'"]),
        (
            {"method": {"type": "f_dpo", "f_dpo": {"betta": 1}}},
            400,
            "method.f_dpo.betta",
            ["hyperparameters"],
        ),
        ({"method": {"type": "f_dpo", "f_dpo": []}}, 400, "method.f_dpo", ["an object"]),
        ({"method": method(betta=0.1)}, 400, "method.f_dpo.hyperparameters.betta", ["betta"]),
        ({"method": method(beta=0)}, 400, "method.f_dpo.hyperparameters.beta", ["greater than 0"]),
        (
            {"method": method(divergence="l2")},
            400,
            "method.f_dpo.hyperparameters.divergence",
            ["js_divergence"],
        ),
        ({"method": method(n_epochs=51)}, 400, "method.f_dpo.hyperparameters.n_epochs", ["50"]),
        ({"suffix": ""}, 400, "suffix", ["found ''"]),
        ({"suffix": "x" * 65}, 400, "suffix", ["suffix: expected 1 to 64 of the letters"]),
        ({"suffix": "é"}, 400, "suffix", ["expected 1 to 64 of the letters", "found 'é'"]),
        ({"suffix": "x\n"}, 400, "suffix", ["found 'x\\n'"]),
        ({"suffix": " x"}, 400, "suffix", ["' x'"]),
        ({"suffix": "a/b"}, 400, "suffix", ["'a/b'"]),
        ({"suffix": "a:b"}, 400, "suffix", ["'a:b'"]),
        ({"seed": -1}, 400, "seed", ["found -1"]),
        ({"seed": 2**31}, 400, "seed", ["2147483647"]),
        ({"seed": "7"}, 400, "seed", ["integer", "'7'"]),
        ({"metadata": {str(n): "x" for n in range(17)}}, 400, "metadata", ["16"]),
        ({"metadata": {"k" * 65: "x"}}, 400, f"metadata.{'k' * 65}", ["64"]),
        ({"metadata": {"k": "x" * 513}}, 400, "metadata.k", ["512"]),
        ({"metadata": {"k": 1}}, 400, "metadata.k", ["string"]),
        ({"metadata": {'"': "x"}}, 400, 'metadata."', ["without quotes"]),
        (
            {"hyperparameters": {"n_epochs": 1}},
            400,
            "hyperparameters",
            ["with `method` given", "method.f_dpo.hyperparameters"],
        ),
        ({"integrations": [{"type": "comet"}]}, 400, "integrations.0", ["'wandb'", "comet"]),
        ({"integrations": [{"type": "wandb"}]}, 400, "integrations.0.wandb", ["Missing"]),
        ({"integrations": [WANDB | {"api_key": "x"}]}, 400, "integrations.0.api_key", ["Unknown"]),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "../p"}}]},
            400,
            "integrations.0.wandb.project",
            ["'../p'"],
        ),
        ({"integrations": [WANDB, WANDB]}, 400, "integrations", ["each tracker once", "wandb"]),
        ({"integrations": [WANDB] * 6}, 400, "integrations", ["5"]),
        ({"extra_body": {"colour": "red"}}, 400, "colour", ["'colour'"]),
    ],
)
def test_a_request_that_is_not_in_order(
    client: OpenAI, changes: dict[str, Any], status: int, param: str, words: list[str]
) -> None:
    error = refusal(client, **changes)
    assert error.status_code == status
    assert error.param == param
    for word in words:
        assert word in error.message, error.message


@pytest.mark.usefixtures("untouched")
def test_all_refused_hyperparameters_are_named_at_once(client: OpenAI) -> None:
    error = refusal(client, method=method(beta=0, betta=1, n_epochs=0))
    for name in ("beta", "betta", "n_epochs"):
        assert f"method.f_dpo.hyperparameters.{name}: " in error.message
    assert error.code == "invalid_hyperparameters"


ROW = json.loads(pairs(1))
NO_ANSWER = ROW | {"preferred_output": []}
SAME = ROW | {"non_preferred_output": ROW["preferred_output"]}


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
CHATS = [{"messages": CHAT}] * 10


def distillation(teacher: str) -> dict[str, Any]:
    return {"type": "sinkd", "sinkd": {"hyperparameters": {"teacher": teacher}}}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n", ["empty"]),
        (b"%PDF-1.7 nothing", ["a PDF document", "JSON Lines"]),
        (pairs(2) + pairs(1)[:40], ["line 3", "JSON"]),
        (pairs(1) + "é".encode("latin-1") + b"\n", ["line 2", "UTF-8"]),
        (pairs(1) + b'"' + b"x" * (9 * 2**20) + b'"\n', ["line 2", "8388608 bytes"]),
        (pairs(1) + lines(NO_ANSWER), ["line 2", "/preferred_output"]),
        (lines(SAME, SAME), ["every row"]),
        (lines(*[{}] * 25), ["25 of 25", "25 rows, the first at line 1:", "an object without entries"]),
        (gzip.compress(pairs(3), mtime=0)[:-12], ["damaged"]),
    ],
    ids=[
        "empty",
        "no JSON Lines",
        "cut off",
        "not UTF-8",
        "long line",
        "no answer",
        "equal",
        "many",
        "bad gzip",
    ],
)
@pytest.mark.parametrize("param", ["training_file", "validation_file"])
def test_a_file_that_cannot_be_used(
    service: Running, client: OpenAI, content: bytes, words: list[str], param: str
) -> None:
    good, bad = upload(client), upload(client)
    (service.settings.files_dir / bad).write_bytes(content)  # as it was taken before uploads were checked
    error = refusal(client, **({"training_file": good} | {param: bad}))
    assert isinstance(error, openai.BadRequestError)
    assert (error.param, error.code) == (param, f"invalid_{param}")
    for word in words:
        assert word in error.message, error.message
    assert "line 21" not in error.message
    assert str(service.settings.root) not in error.message


@pytest.mark.usefixtures("untouched")
def test_a_file_of_another_purpose(client: OpenAI) -> None:
    error = refusal(client, training_file=upload(client, purpose="user_data"))
    assert isinstance(error, openai.BadRequestError)
    assert (error.param, error.code) == ("training_file", "invalid_file_purpose")
    assert "'fine-tune', found 'user_data'" in error.message


@pytest.mark.usefixtures("untouched")
def test_a_tracker_that_the_server_lacks(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit_server.jobs.preparation.installed", lambda name: name == "tensorboard")
    error = refusal(client, integrations=[WANDB, {"type": "tensorboard"}])
    assert isinstance(error, openai.BadRequestError)
    assert (error.param, error.code) == ("integrations", "integration_unavailable")
    assert "integrations: wandb is not installed on this server" in error.message


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "quantised with AWQ"),
        ({"model_type": "roberta"}, "RobertaForCausalLM is not a causal language model"),
    ],
)
def test_a_model_that_cannot_train(
    service: Running, client: OpenAI, config: dict[str, Any], words: str
) -> None:
    folder = service.settings.models_dir / "odd"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    error = refusal(client, model="odd")
    shutil.rmtree(folder)
    assert (error.status_code, error.param, error.code) == (400, "model", "model_not_trainable")
    assert words in error.message
    assert str(service.settings.home) not in error.message


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("changes", [{"model": "holed"}, {"method": distillation("holed")}])
def test_a_model_or_teacher_that_lacks_weights(
    service: Running, client: OpenAI, changes: dict[str, Any]
) -> None:
    folder = build_tiny_model(service.settings.models_dir / "holed")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    rows = None if "model" in changes else upload(client, lines(*CHATS))
    try:
        error = refusal(client, **changes, **({"training_file": rows} if rows else {}))
    finally:
        shutil.rmtree(folder)
    param = "model" if "model" in changes else "method.sinkd.hyperparameters.teacher"
    assert (error.status_code, error.param, error.code) == (400, param, "model_not_trainable")
    assert "lacks 1 of the model's weights, which would be random: model.norm.weight" in error.message
    assert str(service.settings.home) not in error.message


def test_a_deleted_file(client: OpenAI) -> None:
    file_id = upload(client)
    client.files.delete(file_id)
    assert refusal(client, training_file=file_id).status_code == 404


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "needs a JSON body"),
        (b"[]", "body"),
        (b'{"model": "m"}', "'training_file'"),
        (b'{"model": "\\ud800", "training_file": "f"}', "model"),
        (b'{"\\ud800": 1, "model": "m", "training_file": "f"}', "unicode"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "The body is not valid JSON."),
        (b'{"seed": ' + b"1" * 5000 + b"}", "The body is not valid JSON."),
    ],
)
def test_a_body_that_is_no_job(service: Running, key: str, body: bytes, message: str) -> None:
    headers = {"content-type": "application/json"}
    with service.http(key) as http:
        answer = http.post("/v1/fine_tuning/jobs", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_it_is_json(service: Running, key: str, kind: str) -> None:
    with service.http(key) as http:
        answer = http.post("/v1/fine_tuning/jobs", content=b'{"model": "m"}', headers={"content-type": kind})
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]
