"""Configurations of the trainers: TRL's, plus the options that a method declares."""

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError, create_model
from pydantic.fields import FieldInfo
from trl import DPOConfig, SFTConfig

from alignkit.methods import BDKD, D2O, FDPO, Method, SinKD
from alignkit.schema import Section, field_issues
from alignkit.trainers.upstream import dict_fields, get_config_model_id

Refused = Mapping[str, tuple[Any, str]]
"""TRL options that would be ignored -> (value that each must keep, reason)."""
REFUSED_OF_PAIRS: Refused = {
    "loss_type": (["sigmoid"], "the loss is the method's own"),
    "f_divergence_type": ("reverse_kl", "use f-DPO's `divergence`, whose scores are stable"),
    "ld_alpha": (None, "it reweights tokens, so that the log-ratio is no longer that of the sequence"),
    "use_weighting": (False, "WPO's weights are not defined for another loss"),
}
REFUSED_OF_DISTILLATION: Refused = {
    "loss_type": ("nll", "the cross-entropy is part of the loss, with a weight of its own"),
    "packing": (False, "metrics and transport need separate sequences"),
    "padding_free": (False, "metrics and transport need separate sequences"),
    "label_smoothing_factor": (0.0, "it needs the logits, which the fused heads never make"),
    "use_liger_kernel": (False, "it replaces the forward that the fused heads need"),
    "router_aux_loss_coef": (0.0, "the routers' balance loss is not added to a distillation loss"),
}
REFUSED_OF_SAMPLES: Refused = {
    "loss_type": (["sigmoid"], "D2O has one loss"),
    "f_divergence_type": ("reverse_kl", "D2O is defined with the reverse KL"),
    "ld_alpha": (None, "use `logps='mean'` to remove the effect of length"),
    "use_weighting": (False, "WPO's weights are defined for pairs"),
    "label_smoothing": (0.0, "the rows have no pair of answers whose label could be flipped"),
    "sync_ref_model": (False, "use `ref_refresh_every`"),
    "truncation_mode": ("keep_start", "cutting the prompt would change what the samples answer"),
    "disable_dropout": (True, "the gradient is exact only if both passes of a step see the same policy"),
    "precompute_ref_log_probs": (True, "the references' log-probs are always computed ahead"),
}


def refuse_options(args: Any, refused: Refused, of: str) -> None:
    """Raise ValueError if an option of TRL's configuration is set that the trainer would ignore."""
    for name, (required, reason) in refused.items():
        if args is not None and getattr(args, name) != required:
            raise ValueError(f"{name}={getattr(args, name)!r} is not an option of {of}: {reason}.")


def require_config(args: Any, config: type[Any]) -> None:
    """Raise TypeError unless `args` is an instance of `config`. Call it before loading a model."""
    if isinstance(args, config):
        return
    found, home = type(args), config.__module__.partition(".")[0]
    expected = f"{'alignkit.trainers' if home == 'alignkit' else home}.{config.__name__}"
    more = f", which has {found.__name__}'s options and more" if issubclass(config, found) else ""
    raise TypeError(f"args: expected {expected}{more}, found {found.__name__}")


def own_config(config: Any, args: Any, model: Any) -> Any:
    """Return `args`, or a default `config` if None. Raises TypeError for another configuration, such as TRL's."""
    if args is None:
        return config(default_folder(model, config.method_class.model_fields["type"].default))
    require_config(args, config)
    return args


def default_folder(model: Any, method: str) -> str:
    """Return TRL's default `output_dir`, named after model and method: `SmolLM2-135M-BD-KD`."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return f"{Path(name).name}-{method.rpartition(':')[2].upper().replace('_', '-')}"


def config_class(name: str, method: type[Method], base: type[Any], doc: str) -> Any:
    """Create a dataclass `name`: `base` with the method's options as fields, checked on creation.

    Its `.method()` returns the method. Options that are sections, such as a teacher, are left out, since a trainer
    gets the model itself. They are None in the method.
    """
    sections = {option: info for option, info in method.own_options().items() if _is_section(info.annotation)}
    options = {option: info for option, info in method.own_options().items() if option not in sections}
    dicts = [option for option, info in options.items() if "dict" in str(info.annotation)]
    absent: dict[str, Any] = {option: (info.annotation | None, None) for option, info in sections.items()}
    kind = (
        create_model(method.__name__, __base__=method, __module__=method.__module__, **absent)
        if absent
        else method
    )

    def check(self: Any) -> None:
        """Check the fields. Raises ValueError, which names the fields out of range."""
        base.__post_init__(self)
        self.method()

    def made(self: Any) -> Method:
        """Return the method with these options."""
        try:
            return kind.model_validate({option: getattr(self, option) for option in options})
        except ValidationError as error:
            raise ValueError("\n".join(map(str, field_issues(error)))) from error

    return make_dataclass(
        name,
        [(option, info.annotation, _field(info)) for option, info in options.items()],
        bases=(base,),
        namespace={
            "__doc__": doc,
            "__module__": __name__,
            "__post_init__": check,
            "method": made,
            "method_class": method,
            "_VALID_DICT_FIELDS": dict_fields(base, *dicts),
        },
    )


def _field(info: FieldInfo) -> Any:
    metadata: Mapping[str, Any] = {"help": info.description or ""}
    if info.default_factory is not None:
        return field(default_factory=info.default_factory, metadata=metadata)  # type: ignore[arg-type]
    return field(default=info.default, metadata=metadata)


def _is_section(annotation: Any) -> bool:
    kinds = (annotation, *get_args(annotation))
    return any(isinstance(kind, type) and issubclass(kind, Section) for kind in kinds)


class _FDPOBase(DPOConfig):
    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_options(self, REFUSED_OF_PAIRS, "f_dpo")


@dataclass
class DistillationConfig(SFTConfig):
    """SFTConfig plus the options of every distillation. Raises ValueError for TRL options that would be ignored."""

    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments of from_pretrained for a teacher given as a string."},
    )
    router_aux_loss_coef: float | None = field(
        default=0.0, metadata={"help": "Must be 0: the routers' balance loss is not added."}
    )

    _VALID_DICT_FIELDS = dict_fields(SFTConfig, "teacher_model_init_kwargs")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_options(self, REFUSED_OF_DISTILLATION, "distillation")


@dataclass
class DispreferredConfig(DPOConfig):
    """DPOConfig plus the folder of D2O's samples. Raises ValueError for TRL options that would be ignored."""

    precompute_ref_log_probs: bool = field(
        default=True,
        metadata={"help": "Must be true: the references score once, and again after each refresh."},
    )
    samples_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of samples and their scores; default: samples/ in output_dir."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_options(self, REFUSED_OF_SAMPLES, "D2O")


FDPOConfig = config_class(
    "FDPOConfig",
    FDPO,
    _FDPOBase,
    "DPOConfig with f-DPO's options. Raises ValueError for TRL options that would be ignored.\n\n"
    "`beta` multiplies f'. `label_smoothing` in [0, 0.5) is cDPO's, or robust DPO's with `robust`.",
)
SinKDConfig = config_class(
    "SinKDConfig",
    SinKD,
    DistillationConfig,
    "DistillationConfig with SinKD's options.\n\n"
    "The defaults of `temperature`, `epsilon` and `iterations` are those of the authors' published code. The\n"
    "defaults of the three weights are those of its T0 run.",
)
BDKDConfig = config_class(
    "BDKDConfig",
    BDKD,
    DistillationConfig,
    "DistillationConfig with BD-KD's options: the gate, the weights, and the teacher's training.\n\n"
    "The defaults are our reading of the paper.",
)
D2OConfig = config_class(
    "D2OConfig",
    D2O,
    DispreferredConfig,
    "DispreferredConfig with D2O's options: its weights, samples and references.\n\n"
    "`beta` >= 0 is the weight of the samples' log-ratios.",
)
