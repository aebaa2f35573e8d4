"""Names of fine-tuned models: ft:{base}:{project}:{suffix}:{id}, and …:ckpt-step-{n} for checkpoints.

A job that publishes other strengths of its result has …:amount-{amount} too.
"""

from alignkit_server.ids import JOB

ID_LENGTH = 8


def model_name(
    base: str, project: str, suffix: str | None, job_id: str, variant: int | str | None = None
) -> str:
    """The name under which a job's model is served, or a variant of it: the step of a checkpoint, or a strength.

    Spaces in the suffix become hyphens. The first eight characters of the job's id make the name unique, so that no
    name is ever reused.
    """
    label = (suffix or "").replace(" ", "-")
    name = f"ft:{base}:{project}:{label}:{job_id.removeprefix(JOB)[:ID_LENGTH]}"
    if variant is None:
        return name
    return f"{name}:ckpt-step-{variant}" if isinstance(variant, int) else f"{name}:{variant}"
