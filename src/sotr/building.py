"""`build_network`: the one place that decides which network a configuration means."""

from sotr.config import SOTRConfig
from sotr.network import SOTR
from sotr.released.network import ReleasedSOTR


def build_network(config: SOTRConfig) -> SOTR:
    """The network of a configuration, of either variant, with random weights.

    Raises:
        SOTRError: its backbone cannot be built.
    """
    return ReleasedSOTR(config) if config.variant == "released" else SOTR(config)
