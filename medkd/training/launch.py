"""Starting the processes of a training on several devices, and ending them together."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Sequence

from medkd.errors import Stopped, TrainingError

# For the others to save the state after their step, before they are killed.
_SECONDS_TO_STOP = 120


def run_on_devices(arguments: Sequence[str], devices: int) -> None:
    """Run ``medkd ARGUMENTS`` in as many processes on this machine, as torchrun does.

    Each finds by its environment which one it is. If one ends badly, the others are ended.

    Raises:
        TrainingError: a process ended badly; it has told why, unless it was killed.
        Stopped: a signal came; every process was told, and had time to save.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It tells a page for what is one line here.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=_SECONDS_TO_STOP,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "medkd.cli", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            how = f"was killed by {signal.Signals(-failure.exitcode).name}"
            remedy = "If it was not you, the system may have been short of memory."
        else:
            how, remedy = f"ended with status {failure.exitcode}", "It says why above."
        raise TrainingError(
            f"process {rank} of {devices} {how}, and the others were ended",
            where="train.devices",
            remedy=f"{remedy} The same command goes on from the last saved state, on any number "
            "of devices.",
        ) from None
    except SignalException as error:
        raise Stopped(int(error.sigval)) from None
