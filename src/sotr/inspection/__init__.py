"""Data sets looked over, shown and repaired: the commands `sotr data check` and `sotr data show`."""

from sotr.inspection.check import check_data
from sotr.inspection.show import show_data

__all__ = ["check_data", "show_data"]
