"""One of the processes of `glmtune train --nproc`: an error goes into a file, for all are told one.

train/launch.py starts it as `python -m glmtune.cli.child_process` and reads the file.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import record

from glmtune.cli.main import app

if __name__ == "__main__":
    try:
        record(app)()
    except Exception:  # it has been recorded
        sys.exit(1)
