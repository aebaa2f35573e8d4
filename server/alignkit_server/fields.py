"""Types of fields that the schemas of several resources share."""

from typing import Annotated

from pydantic import StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""Text that every database can search for; the pattern also refuses lone surrogates."""
