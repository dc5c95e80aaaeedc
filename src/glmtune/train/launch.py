"""One command -> a process per device on this machine, by torch's own launcher.

    glmtune train recipe.yaml --nproc 2
      |- rank 0   shows the bar and the log, writes the output folder
      `- rank 1   is silent; its error is kept in a file

When a process fails, the others soon fail too, since their collectives no longer complete. The
error that is shown is that of the process which failed first. Several machines are for `torchrun`
and `accelerate launch`, which start the same command without `--nproc`.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import glmtune.errors
from glmtune.machine import num_cores
from glmtune.messages import translate

SECONDS_TO_SAVE = 120  # after Ctrl-C, for the micro-batch in hand and a checkpoint


def launch(arguments: Sequence[str], num_processes: int) -> int:
    """Run `glmtune` with these arguments in several processes that train together.

    Returns:
        The exit code; the first error has been printed to standard error by then.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_processes)))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it logs the end of each process
    with TemporaryDirectory(prefix="glmtune-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id="glmtune",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            max_restarts=0,
            shutdown_timeout=SECONDS_TO_SAVE,
            logs_specs=DefaultLogsSpecs(log_dir=folder, local_ranks_filter={0}),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "glmtune.cli.child_process", *arguments)
        except SignalException:
            return 130
        except ChildFailedError as error:
            return _print_first(error.failures)
    return 0


def _print_first(failures: Mapping[int, Any]) -> int:
    """Print the failure that caused the others, and give the exit code."""
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # not by the launcher
            text = (
                f"error: rank {rank} was ended by {failure.signal_name()}. If that is SIGKILL, the "
                "machine ran out of memory: lower training.per_device_train_batch_size, or set "
                "training.gradient_checkpointing=true."
            )
            print(translate(text), file=sys.stderr)
            return 1
    recorded = [
        (path.stat().st_mtime_ns, rank, path)
        for rank, failure in failures.items()
        if (path := Path(failure.error_file)).is_file()
    ]
    if not recorded:  # interrupted, or the command line was wrong: rank 0 has printed why
        return max(int(failure.exitcode) for failure in failures.values()) or 1
    _, rank, path = min(recorded)
    recorded_error = json.loads(path.read_text(encoding="utf-8"))["message"]
    kind, _, text = recorded_error["message"].partition(": ")
    if hasattr(glmtune.errors, kind):
        print(translate(f"error: {text}"), file=sys.stderr)
    else:  # a bug of ours or of a library
        print(
            f"error: rank {rank} failed first:\n{recorded_error['extraInfo']['py_callstack']}",
            file=sys.stderr,
        )
    return 1
