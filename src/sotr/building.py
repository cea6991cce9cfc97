"""`build_network`: the one place that decides which network a configuration means."""

from sotr.config import SOTRConfig
from sotr.network import SOTR
from sotr.positioned import PositionedSOTR
from sotr.released.network import ReleasedSOTR


def build_network(config: SOTRConfig) -> SOTR:
    """The network of a configuration, of either variant, with waves of position or without, with random weights.

    Raises:
        SOTRError: its backbone cannot be built.
    """
    if config.variant == "released":
        return ReleasedSOTR(config)
    return PositionedSOTR(config) if config.position_waves else SOTR(config)
