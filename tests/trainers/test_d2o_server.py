"""D2OTrainer drawing from a server, over real HTTP."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from alignkit.errors import DataError
from alignkit.sampling import SamplingError
from tests.sampling.fake_server import FakeServer
from tests.tiny import END_TOKEN, PAD_TOKEN, START_TOKEN, build_tiny_model
from tests.trainers.test_d2o import build, config, rows


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def test_samples_come_from_the_server_once(tmp_path: Path, model_dir: Path, server: FakeServer) -> None:
    args = config(tmp_path, sampler_url=server.url, instruction_pool=["Be kind."])
    trainer = build(model_dir, args, rows(4, None))
    for row in trainer.rows.rows:
        last = row.prompt.renderings[0][-1]
        assert [one.ids[one.prompt_length :] for one in row.samples] == [[last, 40], [last, 41], [last, 42]]
        assert one_prompt(row.samples) == row.begin
    assert sorted(body["n"] for body in server.bodies) == [3] * 4
    asked = [body["prompt"] for body in server.bodies]
    assert all(list(row.prompt.renderings[0]) in asked for row in trainer.rows.rows)
    build(model_dir, args, rows(4, None))
    assert len(server.bodies) == 4


def one_prompt(samples: list) -> list[int]:  # type: ignore[type-arg]
    prompts = {tuple(one.ids[: one.prompt_length]) for one in samples}
    assert len(prompts) == 1
    return list(prompts.pop())


def test_answers_end_where_the_template_and_the_generation_config_say(
    tmp_path: Path, server: FakeServer
) -> None:
    """A base model: its template ends a turn with a token that the server's model folder does not name."""
    base = build_tiny_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base, eos_token=PAD_TOKEN)
    tokenizer.save_pretrained(base)
    pad, start, end = tokenizer.convert_tokens_to_ids([PAD_TOKEN, START_TOKEN, END_TOKEN])
    GenerationConfig(eos_token_id=[pad, start]).save_pretrained(base)
    build(base, config(tmp_path, sampler_url=server.url), rows(1, None))
    assert server.bodies[0]["stop_token_ids"] == [end, pad, start]


def test_online_the_server_gets_the_adapter_under_a_new_name(
    tmp_path: Path, model_dir: Path, server: FakeServer
) -> None:
    args = config(tmp_path, sampler_url=server.url, resample_every=1, max_steps=3)
    build(model_dir, args, rows(4, None)).train()
    names = [one["lora_name"] for one in server.adapters]
    assert len(set(names)) == 2
    folders = [Path(one["lora_path"]) for one in server.adapters]
    assert all((folder / "adapter_model.safetensors").is_file() for folder in folders)
    assert [body["model"] for body in server.bodies] == ["base"] * 4 + [names[0]] * 4 + [names[1]] * 4


def test_what_a_server_cannot_do_is_said(tmp_path: Path, model_dir: Path, server: FakeServer) -> None:
    args = config(tmp_path, sampler_url=server.url, resample_every=1)
    trainer = build(model_dir, args, rows(4, None), peft=None)
    with pytest.raises(DataError, match="resample_every with sampler_url needs LoRA"):
        trainer.train()
    server.status, server.failures = 500, 100
    with pytest.raises(SamplingError, match="did not answer"):
        build(model_dir, config(tmp_path / "b", sampler_url=server.url), rows(1, None))
