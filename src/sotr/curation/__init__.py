"""What people do to data before training: check, repair, convert, show and synthesize it."""

from typing import TYPE_CHECKING

from sotr.lazy import lazy_names

if TYPE_CHECKING:
    from sotr.curation.check import check_data
    from sotr.curation.show import show_data

__all__ = ["check_data", "show_data"]

_HOMES = {"check_data": "sotr.curation.check", "show_data": "sotr.curation.show"}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
