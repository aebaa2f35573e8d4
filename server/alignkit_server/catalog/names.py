"""Names of fine-tuned models: ft:{base}:{project}:{suffix}:{id}, and …:ckpt-step-{n} for checkpoints."""

from alignkit_server.ids import JOB

ID_LENGTH = 8


def model_name(base: str, project: str, suffix: str | None, job_id: str, step: int | None = None) -> str:
    """The name under which a job's model, or its checkpoint at `step`, is served.

    Spaces in the suffix become hyphens. The first eight characters of the job's id make the name unique, so that no
    name is ever reused.
    """
    label = (suffix or "").replace(" ", "-")
    name = f"ft:{base}:{project}:{label}:{job_id.removeprefix(JOB)[:ID_LENGTH]}"
    return name if step is None else f"{name}:ckpt-step-{step}"
