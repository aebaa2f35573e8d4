"""Refuses a job whose result could not be served as merged weights, before hours of training."""

from typing import Any

from alignkit.models.trainable import DEQUANTISED, config_of, quantization_of
from alignkit_server.engines.command import engine_dtype, runs_on_gpu
from alignkit_server.engines.serving import AS_ADAPTER, QUANTIZATIONS
from alignkit_server.errors import ApiError
from alignkit_server.reserve import has_room
from alignkit_server.settings import Settings
from alignkit_server.storage.runs import bytes_on_disk


def require_mergeable(serving: str, recipe: Any, base_model: str, settings: Settings) -> None:
    """Raise ApiError (400) with the reason if the result of `recipe` cannot be served so."""
    if serving == AS_ADAPTER:
        return
    if recipe.lora is None:
        raise _refused("expected no value for a job that trains all weights: its engine is its own already")
    base = settings.models_dir / base_model
    quantized = quantization_of(config_of(base))
    if quantized is not None and quantized not in DEQUANTISED:
        raise _refused(
            f"the weights of {base_model} are quantised with {quantized}, and an adapter cannot be added to them "
            "exactly; expected 'adapter'"
        )
    if serving in QUANTIZATIONS:
        _require_quantizing_engine(serving, base_model, settings)
    size = bytes_on_disk([base])
    if size > settings.export_bytes:
        raise _refused(
            f"merging takes {size:,} bytes of memory, and ALIGNKIT_EXPORT_BYTES gives it {settings.export_bytes:,}; "
            "expected 'adapter'"
        )
    if not has_room(settings.root, size):
        raise _refused(f"the server's disk has no room for {size:,} bytes of weights; expected 'adapter'")


def _require_quantizing_engine(serving: str, base_model: str, settings: Settings) -> None:
    if not runs_on_gpu():
        raise _refused(f"{serving!r} needs a GPU for the engine, and this server has none; expected 'merged'")
    if engine_dtype(settings.engine.of(base_model)) == "float32":
        raise _refused(
            f"{serving!r} needs an engine that computes in 16 bits, and this server's computes in float32; expected "
            "'merged'"
        )


def _refused(why: str) -> ApiError:
    return ApiError(400, f"serving: {why}.", param="serving", code="invalid_value")
