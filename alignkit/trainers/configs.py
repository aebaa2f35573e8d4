"""The trainers' configurations: TRL's, with the options of a method added as it declares them."""

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from trl import DPOConfig

from alignkit.methods import FDPO, Method
from alignkit.schema import Section, field_issues
from alignkit.trainers.preference import refuse_options


def config_class(name: str, method: type[Method], base: type[Any], doc: str) -> Any:
    """A dataclass `name`: `base` with the method's options as fields, checked when made. `.method()` is the method.

    Options that are sections, such as a teacher, are left out: a trainer is handed the model itself.
    """
    options = {
        option: info for option, info in method.own_options().items() if not _is_section(info.annotation)
    }
    dicts = [option for option, info in options.items() if "dict" in str(info.annotation)]

    def check(self: Any) -> None:
        """Convert and check the fields; raises ValueError naming those out of range."""
        base.__post_init__(self)
        self.method()

    def made(self: Any) -> Method:
        """The method with these options."""
        try:
            return method.model_validate({option: getattr(self, option) for option in options})
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
            "_VALID_DICT_FIELDS": [*base._VALID_DICT_FIELDS, *dicts],  # noqa: SLF001 - transformers' protocol
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
        refuse_options(self, "f_dpo")


FDPOConfig = config_class(
    "FDPOConfig",
    FDPO,
    _FDPOBase,
    "DPOConfig with f-DPO's options; options of TRL that have no meaning under an f-divergence are refused.\n\n"
    "`beta` multiplies f'. `label_smoothing` in [0, 0.5) is cDPO's, or robust DPO's with `robust`.",
)
