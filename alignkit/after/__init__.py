"""Steps after training, which are changes of the trained weights before they are evaluated again and saved.

A step is one file: a section with its options and `apply`. It is found by its `type` in a recipe's or a job's
`after`.
"""

from typing import Annotated

from pydantic import Field

from alignkit.after.adapter import Adapter
from alignkit.after.base import AfterStep, Finished
from alignkit.after.interpolate import Interpolate
from alignkit.after.truncate_rank import TruncateRank

__all__ = ["Adapter", "AfterStep", "Finished", "Interpolate", "Step", "TruncateRank"]

Step = Annotated[Interpolate | TruncateRank, Field(discriminator="type")]
"""Any step, told apart by its `type`."""
