import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sotr.errors import SOTRError
from sotr.training.loggers import LOGGERS, check_logger, log_pictures, make_loggers

RUN = {"name": "first", "command": "sotr train data", "config": {}, "recipe": {}, "seed": 0, "data": {}}


def test_tensorboard_shows_pictures(tmp_path: Path) -> None:
    loggers = make_loggers(tmp_path, RUN, None, 0)
    picture = np.zeros((6, 9, 3), np.uint8)
    log_pictures(loggers, {"validation/a.png": picture}, step=7)
    for logger in loggers:
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    (image,) = events.Images("validation/a.png")
    assert (image.step, image.height, image.width) == (7, 6, 9)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_service_whose_package_is_absent_is_one_line(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(SOTRError, match=rf"--logger {name} needs the package {name}; install it with: pip install"):
        check_logger(name)


def test_services_that_do_not_exist() -> None:
    check_logger(None)
    with pytest.raises(SOTRError, match=r"no logger 'comet'; choose one of wandb, mlflow"):
        check_logger("comet")
