"""Drawing: filters, further draws, instructions in turn; transformers and a real HTTP server behind it."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.sampling import (
    LocalSampler,
    SampleStore,
    SamplingError,
    SamplingOptions,
    SamplingPrompt,
    ServerSampler,
    digest,
    draw,
)
from tests.sampling.fake_server import FakeServer
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir)


class Letters:
    """A tokenizer with one token per letter, and a sampler that returns given answers and records the prompts."""

    def __init__(self, answers: Sequence[str] = ()) -> None:
        self.answers = iter(answers)
        self.asked: list[tuple[int, ...]] = []

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, ids))

    def complete(self, prompts: Sequence[Sequence[int]], **_: Any) -> list[list[int]]:
        self.asked += [tuple(prompt) for prompt in prompts]
        return [list(map(ord, next(self.answers))) for _ in prompts]


ONE = SamplingPrompt(((1,),), "bad")


def test_empty_repeated_and_dispreferred_answers_are_drawn_anew() -> None:
    letters = Letters(["a", " bad\n", "", "a ", "b", "c", "b"])
    drawn = draw([ONE], letters, letters, SamplingOptions(count=3, redraws=2), seed=0)
    assert [letters.decode(ids) for ids in drawn.answers[0]] == ["a", "b", "c"]
    assert dict(drawn.left_out[0]) == {"equal to the dispreferred answer": 1, "empty": 1, "repeated": 1}
    assert len(letters.asked) == 3 + 2 + 1


def test_draws_end_with_what_there_is() -> None:
    letters = Letters(["bad"] * 100)
    drawn = draw(
        [ONE, SamplingPrompt(((2,),), "good")], letters, letters, SamplingOptions(4, redraws=1), seed=0
    )
    assert drawn.answers == [[], [list(map(ord, "bad"))]]
    assert len(letters.asked) == 8 + 4 + 3


@given(st.lists(st.sampled_from(["", "a", "b", "bad", " a"]), min_size=60, max_size=60), st.integers(1, 5))
def test_answers_are_distinct_usable_and_at_most_k(texts: list[str], count: int) -> None:
    letters = Letters(texts)
    drawn = draw([ONE, ONE], letters, letters, SamplingOptions(count), seed=1)
    for answers in drawn.answers:
        kept = [letters.decode(ids).strip() for ids in answers]
        assert len(kept) == len(set(kept)) <= count
        assert not {"", "bad"} & set(kept)


def test_instructions_take_turns() -> None:
    letters = Letters(map(chr, range(97, 117)))
    prompts = [SamplingPrompt(((1,), (2,), (3,)), "-"), SamplingPrompt(((7,),), "-")]
    draw(prompts, letters, letters, SamplingOptions(6), seed=0)
    assert sorted(letters.asked[:6]) == [(1,), (1,), (2,), (2,), (3,), (3,)]
    assert letters.asked[6:] == [(7,)] * 6


def test_local_answers_repeat_by_seed_and_leave_the_random_state_alone(model: Any, tokenizer: Any) -> None:
    sampler = LocalSampler(model.train(), tokenizer, batch_size=3)
    prompts = [tokenizer("The sky")["input_ids"] * n for n in (1, 3, 2, 1)]
    options = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 5}
    before = torch.random.get_rng_state()
    first = sampler.complete(prompts, seed=1, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert sampler.complete(prompts, seed=1, **options) == first
    assert sampler.complete(prompts, seed=2, **options) != first
    assert all(1 <= len(ids) <= 5 for ids in first)


def test_local_answers_follow_the_models_distribution(model: Any, tokenizer: Any) -> None:
    """Left padding, the fused head's absence and the model's own defaults change nothing: frequencies are p^(1/T)."""
    model.generation_config.top_k = 3
    model.generation_config.repetition_penalty = 1.7
    short, long = tokenizer("The")["input_ids"], tokenizer("What is the capital of")["input_ids"]
    sampler = LocalSampler(model, tokenizer, batch_size=3000)
    drawn = sampler.complete([short] * 2000 + [long] * 1000, temperature=0.5, top_p=1.0, max_tokens=1, seed=0)
    with torch.no_grad():
        p = (model(torch.tensor([short])).logits[0, -1] / 0.5).softmax(-1)
    counts = torch.bincount(torch.tensor([ids[0] for ids in drawn[:2000]]), minlength=len(p))
    likely = p.topk(5).indices
    for token in likely.tolist():
        expected, spread = 2000 * float(p[token]), math.sqrt(2000 * float(p[token]))
        assert abs(int(counts[token]) - expected) < 5 * spread + 1


def test_an_answer_ends_with_its_end_token(model: Any, tokenizer: Any) -> None:
    sampler = LocalSampler(model, tokenizer)
    assert sampler._until_end([5, tokenizer.eos_token_id, 7, 7]) == [5, tokenizer.eos_token_id]
    assert sampler._until_end([5, 6]) == [5, 6]


def test_a_prompt_that_is_too_long_is_named(model: Any, tokenizer: Any) -> None:
    with pytest.raises(SamplingError, match=r"expected prompts of at most 502 tokens, .* found one with 600"):
        LocalSampler(model, tokenizer).complete([[5] * 600], temperature=1, top_p=1, max_tokens=10, seed=0)


OPTIONS: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "max_tokens": 7, "seed": 3}


def test_equal_prompts_are_one_request_and_answers_find_their_prompts(
    server: FakeServer, tokenizer: Any
) -> None:
    with ServerSampler(f"{server.url}/v1/", tokenizer) as sampler:
        answers = sampler.complete([[1, 2], [8], [1, 2], [8], [1, 2]], **OPTIONS)
    assert answers == [[2, 40], [8, 40], [2, 41], [8, 41], [2, 42]]
    assert sorted((body["prompt"], body["n"]) for body in server.bodies) == [([1, 2], 3), ([8], 2)]
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("base", 0.8, 0.9, 7)


def test_text_is_tokenised_where_a_server_gives_no_ids(server: FakeServer, tokenizer: Any) -> None:
    server.token_ids = False
    with ServerSampler(server.url, tokenizer) as sampler:
        (answer,) = sampler.complete([[4]], **OPTIONS)
    assert answer == [*tokenizer(" is 40")["input_ids"], tokenizer.eos_token_id]


def test_a_server_gets_the_tokens_that_end_an_answer(server: FakeServer, tokenizer: Any) -> None:
    server.token_ids = False
    with ServerSampler(server.url, tokenizer) as sampler:
        sampler.complete([[4]], **OPTIONS)
    with ServerSampler(server.url, tokenizer, ends=[7, 9]) as sampler:
        (answer,) = sampler.complete([[4]], **OPTIONS)
    assert [body["stop_token_ids"] for body in server.bodies] == [[tokenizer.eos_token_id], [7, 9]]
    assert answer[-1] == 7


def test_a_server_that_stumbles_is_asked_again(server: FakeServer, tokenizer: Any) -> None:
    server.failures = 2
    with ServerSampler(server.url, tokenizer) as sampler:
        assert sampler.complete([[4]], **OPTIONS) == [[4, 40]]


def test_an_adapter_is_loaded_and_drawn_from(server: FakeServer, tokenizer: Any, tmp_path: Path) -> None:
    with ServerSampler(server.url, tokenizer) as sampler:
        sampler.load_adapter("mine-1", tmp_path)
        sampler.complete([[4]], **OPTIONS)
    assert server.adapters == [{"lora_name": "mine-1", "lora_path": str(tmp_path)}]
    assert server.bodies[0]["model"] == "mine-1"


def test_what_is_wrong_with_a_server_is_said(server: FakeServer, tokenizer: Any) -> None:
    with pytest.raises(SamplingError, match="expected a model named 'other', found base"):
        ServerSampler(server.url, tokenizer, model="other")
    server.models = ["a", "b"]
    with pytest.raises(SamplingError, match="expected one model, or sampler_model to select one, found a, b"):
        ServerSampler(server.url, tokenizer)
    server.failures, server.status = 1, 400
    with (
        ServerSampler(server.url, tokenizer, model="a") as sampler,
        pytest.raises(SamplingError, match=r"did not answer /v1/completions: status 400: .*not now"),
    ):
        sampler.complete([[4]], **OPTIONS)


def test_no_server_is_said(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.sampling.server.time.sleep", lambda _: None)
    with pytest.raises(
        SamplingError, match=r"the sampling server http://127\.0\.0\.1:9 did not answer /v1/models"
    ):
        ServerSampler("http://127.0.0.1:9", tokenizer)


@settings(max_examples=30)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5)), max_size=4))
def test_the_store_gives_back_what_it_was_given(lines: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = SampleStore(Path(folder) / "samples")
        key = digest(lines)
        assert store.read("samples", key) is None
        store.write("samples", key, lines)
        assert store.read("samples", key) == lines
        assert [path.name for path in store.folder.iterdir()] == [f"samples-{key}.jsonl"]


def test_a_digest_is_of_the_content() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest([1, 2]) != digest([12]) != digest([1], [2])
