import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit_server.engines.canary import CanaryReport, check
from alignkit_server.engines.errors import CanaryError, EngineError
from alignkit_server.engines.manager import EngineManager
from tests.server.engines.support import FakeEngines, make_settings

BASE = [-2.0, -3.0, -4.0]
ADAPTER = [-1.0, -3.5, -2.0]
CANARY = {
    "prompt_token_ids": [5, 6, 7],
    "completion_token_ids": [8, 9, 10],
    "base_logprobs": BASE,
    "adapter_logprobs": ADAPTER,
    "dtype": "float32",
}


class Served:
    """A fake engine that answers with the given log-probs."""

    def __init__(self, url: str, table: Path) -> None:
        self.url = url
        self.table = table

    def check(
        self,
        base: list[float] | None,
        adapter: list[float],
        engine_dtype: str = "float32",
        *,
        quantized: bool = False,
        **canary: Any,
    ) -> CanaryReport:
        self.table.write_text(json.dumps({"tiny": base, "ft:tiny": adapter}))
        return check(
            self.url,
            base_model="tiny" if base else None,
            model_name="ft:tiny",
            canary=CANARY | canary,
            engine_dtype=engine_dtype,
            quantized=quantized,
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("canary")
    table = directory / "table.json"
    manager = EngineManager(
        make_settings(directory / "home", "tiny"),
        build_command=FakeEngines(directory, "--logprobs", str(table)),
    )
    yield Served(manager.endpoint("tiny"), table)
    manager.shutdown()


def shifted(values: list[float], by: float) -> list[float]:
    return [value + by for value in values]


def test_a_true_adapter_passes_with_its_numbers(served: Served) -> None:
    report = served.check(shifted(BASE, 1e-4), shifted(ADAPTER, -2e-4))
    assert report.conclusive
    assert report.tokens == 3
    assert report.over_base
    assert report.over_base.base.maximum == pytest.approx(1e-4)
    assert report.adapter.mean == pytest.approx(2e-4)
    assert report.over_base.trained_shift.maximum == 2.0
    shift = json.loads(json.dumps(report.to_dict()))["over_base"]["served_shift"]
    assert shift["maximum"] == pytest.approx(1.9997)
    assert "shift by training: at most 2, 1.2 on average" in report.details()
    assert str(report) == "vLLM answers as trained (3 tokens, differences ≤ 2e-4)"


def test_a_model_whose_every_weight_was_trained_has_no_base(served: Served) -> None:
    report = served.check(shifted(BASE, 9.0), shifted(ADAPTER, 1e-3), base_logprobs=None)
    assert report.conclusive
    assert report.adapter.maximum == pytest.approx(1e-3)
    with pytest.raises(CanaryError, match="vLLM's model does not answer as trained: 3 tokens"):
        served.check(BASE, shifted(ADAPTER, 1.0), base_logprobs=None)


def test_merged_weights_are_compared_with_the_trainers_numbers_of_the_base(served: Served) -> None:
    report = served.check(None, CANARY["adapter_logprobs"])
    assert report.conclusive
    assert report.over_base is not None
    assert report.over_base.served_shift == report.over_base.trained_shift
    with pytest.raises(CanaryError, match="answers as the base model"):
        served.check(None, shifted(CANARY["base_logprobs"], 0.001))


def test_quantised_weights_are_given_the_most_room(served: Served) -> None:
    off = shifted(CANARY["adapter_logprobs"], 0.2)
    assert served.check(None, off, "half", quantized=True).adapter.mean == pytest.approx(0.2)
    with pytest.raises(CanaryError):
        served.check(None, off, "half")
    with pytest.raises(CanaryError, match=r"does not answer as trained|answers as the base model"):
        served.check(None, shifted(off, 2.0), "half", quantized=True)


def test_an_adapter_without_effect_is_caught(served: Served) -> None:
    with pytest.raises(CanaryError, match="vLLM answers as the base model"):
        served.check(BASE, BASE)


def test_an_adapter_with_hardly_any_effect_is_caught(served: Served) -> None:
    with pytest.raises(CanaryError, match="vLLM answers as the base model"):
        served.check(BASE, shifted(BASE, 0.01))


def test_even_a_faint_adapter_must_leave_a_trace(served: Served) -> None:
    faint = shifted(BASE, 0.005)
    assert served.check(BASE, faint, adapter_logprobs=faint).conclusive
    with pytest.raises(CanaryError, match="has no effect"):
        served.check(BASE, BASE, adapter_logprobs=faint)


def test_an_untrained_adapter_is_let_through_as_inconclusive(served: Served) -> None:
    assert not served.check(BASE, BASE, adapter_logprobs=BASE).conclusive


def test_another_adapter_is_caught(served: Served) -> None:
    with pytest.raises(CanaryError, match="adapter does not answer as trained"):
        served.check(BASE, shifted(ADAPTER, 1.0))


def test_another_base_model_is_caught(served: Served) -> None:
    with pytest.raises(CanaryError, match="base model differs from the one that was trained"):
        served.check(shifted(BASE, 0.5), ADAPTER)


def test_a_small_difference_everywhere_is_caught_by_the_mean(served: Served) -> None:
    with pytest.raises(CanaryError, match=r"0\.03 on average"):
        served.check(BASE, shifted(ADAPTER, 0.03))


@pytest.mark.parametrize(("trained", "engine"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_half_precision_on_either_side_is_given_more_room(served: Served, trained: str, engine: str) -> None:
    served.check(BASE, shifted(ADAPTER, 0.06), engine, dtype=trained)
    with pytest.raises(CanaryError):
        served.check(BASE, shifted(ADAPTER, 0.5), engine, dtype=trained)


def test_numbers_that_are_not_finite_never_agree(served: Served) -> None:
    with pytest.raises(CanaryError):
        served.check(BASE, [float("nan")] * 3)
    with pytest.raises(CanaryError):
        served.check(BASE, ADAPTER, adapter_logprobs=[float("nan")] * 3)


def test_an_adapter_the_engine_does_not_find(served: Served) -> None:
    with pytest.raises(CanaryError, match=r"refused the canary request for ft:other: .*at …/x") as caught:
        check(served.url, base_model="tiny", model_name="ft:other", canary=CANARY)
    assert "/srv" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"base_logprobs": [1.0]}, {"prompt_token_ids": []}, {"completion_token_ids": None}]
)
def test_a_canary_that_cannot_be_used(served: Served, change: dict[str, Any]) -> None:
    with pytest.raises(CanaryError, match="the trainer's canary cannot be"):
        served.check(BASE, ADAPTER, **change)


def test_no_engine() -> None:
    with pytest.raises(EngineError, match="did not answer the canary request"):
        check("http://127.0.0.1:9", base_model="tiny", model_name="ft:tiny", canary=CANARY)
