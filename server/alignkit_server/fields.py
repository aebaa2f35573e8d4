"""Types of fields that the schemas of several resources share."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Name = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""Text that every database can search for; the pattern also refuses lone surrogates."""


@dataclass(frozen=True, slots=True)
class Matching:
    """Refuses text that a pattern does not match, in words; the JSON schema has the pattern."""

    pattern: str
    words: str
    """The end of a sentence that begins "expected"."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the pattern after the type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The type's schema with the pattern."""
        return {**handler(schema), "pattern": self.pattern}

    def _check(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:
            raise PydanticCustomError("not_matching", "expected {words}", {"words": self.words})
        return text
