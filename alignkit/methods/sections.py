"""Parts of a recipe that the methods' sections use as well."""

from typing import Literal

from pydantic import Field, field_validator

from alignkit.adapters import HEAD_MODULES
from alignkit.schema import Section

Dtype = Literal["float32", "bfloat16", "float16"]


class LoraSection(Section):
    """Low-rank adapters; `lora: null` trains all weights."""

    r: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = Field(
        "all-linear", description="peft's target_modules; the head cannot be one"
    )

    @field_validator("target_modules")
    @classmethod
    def _no_head(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        if refused := HEAD_MODULES & set(names):
            raise ValueError(f"{', '.join(sorted(refused))} cannot be served as an adapter; leave it out")
        return value


class TeacherSection(Section):
    """The model that is distilled."""

    path: str = Field(min_length=1, description="folder in Hugging Face format, or a hub id")
    adapter: str | None = Field(
        None, min_length=1, description="folder of a peft adapter, merged into it at the start"
    )
    dtype: Dtype | None = Field(None, description="dtype the weights are loaded in; default: model.dtype")
