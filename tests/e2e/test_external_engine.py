"""A vLLM that somebody else runs, as docs/service.md says: the service publishes to it, proves by it and asks it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from alignkit_server.engines.command import adaptable_modules, runs_on_gpu
from alignkit_server.engines.process import free_port
from tests.e2e.service import Service
from tests.e2e.test_main_job import ask

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def start_vllm(home: Path, port: int) -> "subprocess.Popen[bytes]":
    """The documented command; the rest is what vLLM needs without a GPU."""
    (home / "adapters" / "tiny").mkdir(parents=True)
    environment = {
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(home / "adapters" / "tiny"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
    }
    options = ["--model", "tiny", "--enable-lora", "--max-lora-rank", "64", "--host", "127.0.0.1"]
    options += ["--port", str(port), "--max-model-len", "512"]
    if not runs_on_gpu():
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        targets = adaptable_modules(home / "models" / "tiny")
        options += ["--dtype", "float32", "--enforce-eager", "--lora-target-modules", *targets]
    with (home / "vllm.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *options],
            cwd=home / "models",
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    port = free_port()
    urls = f'{{"tiny": "http://127.0.0.1:{port}"}}'
    service = Service(tmp_path / "home", environment={"ALIGNKIT_ENGINE__URLS": urls})
    vllm = start_vllm(service.prepare().home, port)
    service.start()
    try:
        yield service
    finally:
        service.stop()
        for process in [*psutil.Process(vllm.pid).children(recursive=True), vllm]:
            process.kill()
        vllm.wait()


def test_an_adapter_is_published_to_it_proved_and_answered_by_it(service: Service) -> None:
    job = service.finish(
        service.submit(max_steps=4, checkpoint_interval=4).id
    )  # trained before vLLM is ready
    assert job.status == "succeeded", (job.error, (service.home / "vllm.log").read_text()[-3000:])
    assert any("vLLM answers as trained" in message for message in service.messages(job.id))
    before = ask(service, "tiny")
    assert ask(service, job.fine_tuned_model) != before
    assert ask(service, f"{job.fine_tuned_model}:ckpt-step-4") == ask(service, job.fine_tuned_model)
    assert not list((service.home / "engines").glob("*.json")), "the service started none of its own"
    assert service.client.models.delete(job.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        ask(service, job.fine_tuned_model)
    assert ask(service, "tiny") == before
    log = (service.home / "vllm.log").read_text()
    assert "POST /v1/unload_lora_adapter" in log
