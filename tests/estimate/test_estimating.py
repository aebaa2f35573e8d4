"""Estimates of whole recipes: what each method holds, what sharding divides, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import ModelError
from alignkit.estimate import STAGES, Estimate, EstimateError, compare, estimate, smallest
from alignkit.estimate.lengths import assumed
from tests.estimate.recipes import LENGTHS, recipe
from tests.models.test_stored_weights import UP, change_weights
from tests.tiny import build_tiny_model

TEACHER = {"teacher": {"path": "qwen2.5-1.5b"}}


def on(method: dict[str, Any], count: int = 1, stage: str | None = None, **parts: Any) -> Estimate:
    return estimate(recipe(method, **parts), LENGTHS, device="h100", count=count, stage=stage)


def test_the_adapter_switched_off_is_the_reference() -> None:
    assert on({"type": "f_dpo"}).memory.kinds["reference"] == 0
    whole = on({"type": "f_dpo"}, lora=None, training={"reference_store": "off"})
    assert whole.memory.kinds["reference"] == whole.memory.kinds["weights"] > 0


@pytest.mark.parametrize("name", ["f_dpo", "kto"])
@pytest.mark.parametrize("lora", [None, {"r": 8}])
def test_stored_log_probs_are_scored_once_and_need_no_second_model(name: str, lora: Any) -> None:
    each, once = (
        on({"type": name}, lora=lora, training={"reference_store": value, "epochs": 3})
        for value in ("off", "on")
    )
    assert each.step_seconds.computing["reference"] > 0
    assert "reference" not in once.step_seconds.computing
    assert once.memory.kinds["reference"] == 0
    steps = once.steps or 0
    assert once.step_seconds.scoring == pytest.approx(
        each.step_seconds.computing["reference"] * steps / 3, rel=0.25
    )
    assert once.seconds < each.seconds


@pytest.mark.parametrize(
    ("training", "stage", "stored"),
    [
        ({}, "ddp", True),
        ({}, "zero2", False),
        ({"max_steps": 1}, "ddp", False),
        ({"epochs": 0.5}, "ddp", False),
    ],
)
def test_log_probs_are_stored_where_a_run_stores_them(
    training: dict[str, Any], stage: str, *, stored: bool
) -> None:
    found = on({"type": "f_dpo"}, 2, stage, training=training)
    assert ("reference" not in found.step_seconds.computing) == stored


def test_lora_has_small_gradients_and_states() -> None:
    found = on({"type": "supervised"})
    assert found.trainable < found.parameters / 20
    assert found.memory.kinds["gradients"] == 4 * found.trainable  # adapters are float32
    assert found.memory.kinds["optimizer"] >= 8 * found.trainable


def test_terms_of_the_weights_hold_copies_of_them_in_float32() -> None:
    plain, anchored, repelled = (
        on({"type": "f_dpo"}, terms=terms)
        for terms in (
            [],
            [{"type": "anchor", "data": "kept.jsonl"}],
            [{"type": "repel", "adapters": ["a", "b", "c"]}],
        )
    )
    assert anchored.memory.kinds["reference"] - plain.memory.kinds["reference"] == 2 * 4 * plain.trainable
    assert repelled.memory.kinds["reference"] - plain.memory.kinds["reference"] == 3 * 4 * plain.trainable


def test_tuned_options_cost_ranks_and_held_out_rows() -> None:
    data = {"validation": "held-out.jsonl"}
    plain = on({"type": "f_dpo"}, data=data, lora={"r": 16})
    tuned = on({"type": "f_dpo"}, data=data, lora={"r": 16}, tune={"options": ["beta"], "rank": 8, "rows": 4})
    assert tuned.trainable == plain.trainable * 24 / 16
    own = sum(value for name, value in tuned.step_seconds.computing.items() if name != "tuning")
    assert tuned.step_seconds.computing["tuning"] == pytest.approx(own * 4 / 16 / 2)  # every second step
    assert "tuning" not in plain.step_seconds.computing


@pytest.mark.parametrize("lora", [None, {"r": 8}])
def test_d2o_does_not_grow_with_its_samples(lora: Any) -> None:
    few, many = (on({"type": "d2o", "samples_per_prompt": k}, lora=lora) for k in (4, 64))
    assert few.memory == many.memory
    assert many.step_seconds.step > 8 * few.step_seconds.step
    assert many.step_seconds.drawing > 8 * few.step_seconds.drawing > 0
    assert many.tokens > 8 * few.tokens
    assert few.memory.kinds["reference"] == 0


def test_drawing_elsewhere_takes_no_time_here() -> None:
    found = on({"type": "d2o", "sampler_url": "http://localhost:8000"})
    assert found.step_seconds.drawing == 0
    assert found.step_seconds.scoring > 0


def test_a_teacher_that_trains_has_all_that_a_student_has() -> None:
    frozen = on({"type": "bd_kd", "teacher_trains": False} | TEACHER)
    adapted = on({"type": "bd_kd", "teacher_lora": {"r": 8}} | TEACHER)
    whole = on({"type": "bd_kd"} | TEACHER)
    sizes = [found.memory.kinds for found in (frozen, adapted, whole)]
    assert frozen.memory.kinds["teacher"] == 2 * frozen.models["teacher"].shape.parameters
    assert [kinds["gradients"] for kinds in sizes] == sorted({kinds["gradients"] for kinds in sizes})
    assert frozen.memory.peak < adapted.memory.peak < whole.memory.peak


def test_sinkd_has_a_frozen_teacher() -> None:
    found = on({"type": "sinkd"} | TEACHER, lora=None)
    assert found.models["teacher"].shape.trainable == 0
    assert {"policy", "teacher", "heads"} == set(found.step_seconds.computing)


def test_each_stage_shares_what_it_says() -> None:
    run = recipe({"type": "supervised"}, "llama-3.1-8b", lora=None, training={"micro_batch_size": 1})
    found = {one.stage: one for one in compare(run, LENGTHS, device="h100", count=8)}
    weights = 2 * found["ddp"].parameters
    assert set(found) == set(STAGES) - {"single"}
    for name, one in found.items():
        shared = STAGES[name].shares_weights
        expected = 0 if STAGES[name].offload else weights // (8 if shared else 1)
        assert one.memory.kinds["weights"] == expected, name
        assert bool(one.memory.kinds["gathered"]) is shared, name
    peaks = [found[name].memory.peak for name in ("zero1", "zero2", "zero3", "zero3_offload")]
    assert peaks == sorted(peaks, reverse=True)
    # a float32 copy and two float32 states, an eighth of each
    assert found["zero1"].memory.kinds["optimizer"] >= 12 * found["ddp"].parameters // 8
    assert found["zero3_offload"].memory.host >= 12 * found["ddp"].parameters // 8


def test_more_devices_take_less_each_and_send_more() -> None:
    run = recipe({"type": "supervised"}, lora=None, training={"micro_batch_size": 1})
    few, many = (estimate(run, LENGTHS, device="h100", count=n, stage="zero3") for n in (2, 16))
    assert many.memory.peak < few.memory.peak
    assert many.step_seconds.computing["policy"] == pytest.approx(few.step_seconds.computing["policy"] / 8)


def test_accumulated_gradients_are_there_in_the_forward() -> None:
    options: Any = {"lora": None, "model": {"dtype": "float32"}}
    once = on({"type": "supervised"}, training={"batch_size": 2, "micro_batch_size": 2}, **options)
    thrice = on({"type": "supervised"}, training={"batch_size": 6, "micro_batch_size": 2}, **options)
    assert thrice.memory.peak >= once.memory.peak
    assert thrice.memory.kinds["gradients"] >= once.memory.kinds["gradients"]


def test_the_smallest_is_the_first_that_fits() -> None:
    run = recipe(
        {"type": "f_dpo"}, "llama-3.1-70b", lora=None, training={"batch_size": 64, "micro_batch_size": 1}
    )
    found = smallest(run, LENGTHS, device="h100")
    assert found is not None
    assert found.fits
    before = compare(run, LENGTHS, device="h100", count=found.devices // 2)
    assert not any(one.fits for one in before if not STAGES[one.stage].offload)
    assert smallest(recipe({"type": "f_dpo"}, "llama-3.1-405b", lora=None), LENGTHS, device="l4") is None


@pytest.mark.parametrize(
    ("path", "device", "mixed", "batch", "expected"),
    [
        ("llama-3.1-70b", "h100", "no", 24, (24, "fsdp2")),
        ("llama-3.1-8b", "a100-80gb", "bf16", 3, (3, "zero2")),
        ("llama-3.1-8b", "a100-80gb", "bf16", 12, (3, "zero2")),
    ],
)
def test_numbers_of_devices_follow_from_the_batch(
    path: str, device: str, mixed: str, batch: int, expected: tuple[int, str]
) -> None:
    training = {"batch_size": batch, "micro_batch_size": 1, "mixed_precision": mixed}
    found = smallest(
        recipe({"type": "supervised"}, path, lora=None, training=training), LENGTHS, device=device
    )
    assert found is not None
    assert (found.devices, found.stage) == expected


def test_beyond_a_node_are_whole_nodes() -> None:
    training = {"batch_size": 60, "micro_batch_size": 1}  # 10, 12, 15, 20, 30 and 60 are not whole nodes of 8
    assert (
        smallest(
            recipe({"type": "supervised"}, "llama-3.1-70b", lora=None, training=training),
            LENGTHS,
            device="h100",
        )
        is None
    )


def test_a_stage_has_its_own_smallest() -> None:
    run = recipe({"type": "supervised"}, training={"micro_batch_size": 1})
    found = [
        smallest(run, LENGTHS, device="h100", stage=stage) for stage in ("zero3", "zero3_offload", "single")
    ]
    assert [one and (one.devices, one.stage) for one in found] == [
        (2, "zero3"),
        (1, "zero3_offload"),
        (1, "single"),
    ]


def test_one_gpu_may_offload() -> None:
    single, offloaded = compare(
        recipe({"type": "supervised"}, "llama-3.1-8b", lora=None, training={"micro_batch_size": 1}),
        LENGTHS,
        device="h100",
    )
    assert (single.stage, single.fits) == ("single", False)
    assert (offloaded.stage, offloaded.fits, offloaded.memory.kinds["weights"]) == ("zero3_offload", True, 0)
    assert offloaded.memory.host > 16 * offloaded.parameters
    # all weights come over the bus, for the forward and for the backward, and all gradients go back
    assert offloaded.step_seconds.communication > 8 * 6 * offloaded.parameters / 50e9


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, set[str]]] = [
    (
        {},
        {"training": {"optimizer": "adafactor"}},
        "training.optimizer: adafactor cannot be sharded under ZeRO-3",
        {"ddp"},
    ),
    (
        {},
        {"training": {"optimizer": "adamw_8bit"}},
        "training.optimizer: adamw_8bit cannot be sharded under ZeRO-3",
        {"ddp"},
    ),
    (
        {},
        {"model": {"quantization": "nf4"}},
        "model.quantization: .* found ZeRO-3",
        {"ddp", "zero1", "zero2"},
    ),
    (
        {"resample_every": 5},
        {},
        "method.resample_every: sampling from the policy needs a sampler_url",
        {"ddp", "zero1", "zero2"},
    ),
]


@pytest.mark.parametrize(("method", "parts", "message", "stages"), REFUSED)
def test_what_training_refuses_is_not_recommended(
    method: dict[str, Any], parts: dict[str, Any], message: str, stages: set[str]
) -> None:
    run = recipe({"type": "d2o"} | method, **parts)
    assert {one.stage for one in compare(run, LENGTHS, device="h100", count=4)} == stages
    for ask in (estimate, smallest):
        options: Any = {"count": 4} if ask is estimate else {}
        with pytest.raises(EstimateError, match=f"stage: zero3 cannot train this recipe: {message}"):
            ask(run, LENGTHS, device="h100", stage="zero3", **options)


def test_references_that_follow_the_policy_are_refused_under_fsdp_alone() -> None:
    run = recipe({"type": "d2o", "ref_refresh_every": 5})
    assert {one.stage for one in compare(run, LENGTHS, device="h100", count=4)} == set(STAGES) - {
        "single",
        "fsdp2",
    }
    drawn_elsewhere = recipe({"type": "d2o", "resample_every": 5, "sampler_url": "http://localhost:8000"})
    assert len(compare(drawn_elsewhere, LENGTHS, device="h100", count=4)) == len(STAGES) - 1


def test_a_micro_batch_that_is_free_is_the_largest_that_fits() -> None:
    free = recipe({"type": "f_dpo"}, "llama-3.1-8b", training={"micro_batch_size": None})
    found = smallest(free, assumed(2048, 1000), device="h100")
    assert found is not None
    assert (found.devices, found.fits) == (1, True)
    larger = free.training.model_copy(update={"micro_batch_size": 2 * found.micro_batch_size})
    again = free.model_copy(update={"training": larger})
    assert found.micro_batch_size == 16 or not estimate(again, assumed(2048, 1000), device="h100").fits


def test_tokens_and_steps_are_those_of_the_data() -> None:
    found = on({"type": "f_dpo"}, training={"epochs": 2})
    assert (found.steps, found.tokens) == (2 * 63, 2 * 2 * 512 * 1000)
    assert found.seconds == pytest.approx(found.steps * found.step_seconds.step + found.step_seconds.scoring)
    unknown = estimate(recipe({"type": "f_dpo"}), assumed(512, None), device="h100")
    assert (unknown.steps, unknown.tokens, unknown.seconds) == (None, None, None)


def test_checkpoints_fill_the_disk() -> None:
    found = on({"type": "supervised"}, lora=None, training={"max_steps": 100, "save_steps": 20})
    assert found.disk.checkpoints == 5
    assert found.disk.result == 2 * found.parameters
    assert found.disk.total == 5 * found.disk.checkpoint + found.disk.result


def test_a_checkpoint_is_in_the_dtype_that_is_trained() -> None:
    training = {"micro_batch_size": 1, "mixed_precision": "bf16"}
    run = recipe({"type": "supervised"}, lora=None, training=training)
    found = {one.stage: one for one in compare(run, LENGTHS, device="h100", count=2)}
    each = {name: one.disk.checkpoint / one.parameters for name, one in found.items()}
    assert each == {"ddp": 6, "zero1": 14, "zero2": 14, "zero3": 14, "zero3_offload": 14, "fsdp2": 12}
    assert found["fsdp2"].disk.result == 4 * found["fsdp2"].parameters


@pytest.mark.parametrize(("name", "bits"), [("nf4", 4 + 8 / 64 + 32 / (64 * 256)), ("int8", 8)])
def test_quantised_weights_take_less(name: str, bits: float) -> None:
    plain, stored = (
        on({"type": "supervised"}, path="llama-3.1-8b", model={"quantization": quantization})
        for quantization in (None, name)
    )
    linear = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    rows = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096) if name == "int8" else 0
    adapters = stored.trainable * 2  # in 16 bits, where they are float32 otherwise
    expected = plain.memory.kinds["weights"] - 2 * linear - adapters + linear * bits / 8 + 4 * rows
    assert stored.memory.kinds["weights"] == pytest.approx(expected, abs=1)
    assert stored.parameters == plain.parameters
    assert stored.memory.kinds["gathered"] == 2 * 4096 * 14336  # one matrix at a time, in bfloat16
    mixed = {"mixed_precision": "bf16"}
    zero2 = on(
        {"type": "supervised"}, 2, "zero2", path="llama-3.1-8b", model={"quantization": name}, training=mixed
    )
    assert zero2.memory.kinds["weights"] == stored.memory.kinds["weights"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h1000"}, "device: expected one of cpu, h100, .* found 'h1000'"),
        ({"stage": "zero9", "count": 2}, "stage: expected one of single, ddp, .* found 'zero9'"),
        ({"count": 0}, "devices: expected 1 to 16 .*16 rows.* found 0"),
        ({"count": 17}, "devices: expected 1 to 16"),
        ({"count": 1_000_000}, "devices: expected 1 to 16 .* found 1,000,000"),
        ({"count": 3}, "multiple of 3 devices, found 16"),
        ({"count": 16}, "multiple of 16 devices x micro_batch_size 2"),
        ({"stage": "zero3"}, "zero3 is not possible with 1 device"),
        ({"stage": "single", "count": 2}, "single is not possible with 2 devices"),
        ({"device": "cpu", "count": 16}, "this machine has [0-9]+ cores"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EstimateError, match=message):
        estimate(recipe({"type": "f_dpo"}), LENGTHS, **({"device": "h100"} | options))


def test_rows_beyond_the_positions_are_refused() -> None:
    run = recipe({"type": "f_dpo"}, "pythia-2.8b", data={"max_length": 4096})
    with pytest.raises(EstimateError, match=r"data\.max_length: pythia-2\.8b has 2,048 positions"):
        estimate(run, assumed(4096, 10), device="h100")


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(EstimateError, match=r"training.optimizer: .*adamw_torch.* found 'lion_32bit'"):
        on({"type": "f_dpo"}, training={"optimizer": "lion_32bit"})


def test_a_checkpoint_that_is_not_whole_is_refused_before_its_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_tiny_model(tmp_path / "tiny")
    assert estimate(recipe({"type": "f_dpo"}, path=str(folder)), LENGTHS)
    change_weights(folder, lambda weights: weights.pop(UP))
    monkeypatch.setattr("alignkit.estimate.shapes.build", lambda *_: pytest.fail("built"))
    why = f"{folder}: it lacks 1 of the model's weights, which would be random: {UP}"
    with pytest.raises(ModelError, match=f"^model.path: {why}"):
        estimate(recipe({"type": "f_dpo"}, path=str(folder)), LENGTHS)
    monkeypatch.undo()
    taught = recipe({"type": "sinkd", "teacher": {"path": str(folder)}})
    for call in (compare, smallest):
        with pytest.raises(ModelError, match=f"^method.teacher.path: {why}"):
            call(taught, LENGTHS)
