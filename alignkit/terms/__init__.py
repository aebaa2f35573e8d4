"""Terms: what a recipe's `terms` add to a method's loss, one file each.

`terms.available()` names them and `terms.get(type)` returns the class.
"""

from alignkit.terms.base import RowEffect, RowTerm, RowView, Seen, Setup, Term
from alignkit.terms.registry import available, fitting, get

__all__ = ["RowEffect", "RowTerm", "RowView", "Seen", "Setup", "Term", "available", "fitting", "get"]
