"""Entry point of one rank of `glmtune train --nproc`.

Its exception is recorded in a file, so that the launcher reports only the first one.
train/launch.py starts it as `python -m glmtune.cli.child_process` and reads the file.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import record

from glmtune.cli.main import app
from glmtune.cli.streams import prepare_streams

if __name__ == "__main__":
    prepare_streams()
    try:
        record(app)()
    except Exception:  # it has been recorded
        sys.exit(1)
