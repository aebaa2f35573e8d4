"""A job of all weights through the real server's processes; only the training and the engine are stand-ins."""

from pathlib import Path

import openai
import pytest

from alignkit_server.engines.weights import file_name
from tests.server.runner.killing import Rig


def test_it_is_published_proved_by_an_engine_of_its_own_and_deleted(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "home")
    try:
        (job_id,) = rig.submit(1, trained_weights="all")
        rig.finish([job_id])
        client = rig.client()
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status == "succeeded", (job.error, rig.log())
        tuned = str(job.fine_tuned_model)
        names = [tuned, *(f"{tuned}:ckpt-step-{step}" for step in (2, 4, 6))]
        assert {model.id for model in client.models.list()} == {"tiny", *names}
        for name in names:
            weights = tmp_path / "home" / "weights" / file_name(name)
            assert {path.name for path in weights.iterdir()} == {"config.json", "model.safetensors"}
        engines = {path.name.partition("@")[0] for path in (tmp_path / "home" / "engines").glob("*.json")}
        assert any(name.startswith(file_name(tuned)) for name in engines)
        events = client.fine_tuning.jobs.list_events(job_id, limit=100)
        assert any("vLLM answers as trained (2 tokens, differences ≤ 0)" in event.message for event in events)
        for name in names:
            client.models.delete(name)
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve(name)
        assert list((tmp_path / "home" / "weights").iterdir()) == []
        assert list((tmp_path / "home" / "engines").glob("*.json")) == []
        rig.stop()
    finally:
        rig.clean_up()
