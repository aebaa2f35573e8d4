"""A job that trains all weights, for real: trained, published, served by an engine of its own, and taken down again.

What of it needs no vLLM is quick and in tests/server/jobs/test_full_weights.py.
"""

import openai
import psutil
import pytest

from alignkit_server.engines.process import Identity
from alignkit_server.engines.weights import file_name
from tests.e2e.service import Service, wait_for
from tests.e2e.test_main_job import ask

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def engine_of(service: Service, model: str) -> psutil.Process | None:
    """The engine that serves `model` and nothing else."""
    for path in (service.home / "engines").glob("*.json"):
        identity = Identity.load(path)
        if path.name.startswith(file_name(model)) and identity and psutil.pid_exists(identity.pid):
            return psutil.Process(identity.pid)
    return None


def test_a_job_of_all_weights_from_training_to_deletion(service: Service) -> None:
    before = ask(service, "tiny")
    job = service.submit(
        trained_weights="all", max_steps=4, checkpoint_interval=2, learning_rate_multiplier=1000
    )
    done = service.finish(job.id)
    assert done.status == "succeeded", done.error
    tuned = str(done.fine_tuned_model)
    (canary,) = [m for m in service.messages(job.id) if "vLLM answers as trained" in m]
    print(canary)
    assert service.client.models.retrieve(tuned).to_dict()["kind"] == "full"

    engine = engine_of(service, tuned)
    base = engine_of(service, "tiny")
    assert engine is not None
    assert base is not None
    assert engine.pid != base.pid
    assert ask(service, tuned) != before
    assert ask(service, "tiny") == before
    checkpoint = f"{tuned}:ckpt-step-4"
    assert ask(service, checkpoint) == ask(service, tuned), "a third engine, for which an idle one makes room"

    for name in (checkpoint, tuned):
        assert service.client.models.delete(name).deleted
        with pytest.raises(openai.NotFoundError):
            ask(service, name)
        assert not (service.home / "weights" / file_name(name)).exists()
        wait_for(lambda n=name: engine_of(service, n) is None, f"the engine of {name} ends", 60)
    assert ask(service, "tiny") == before
