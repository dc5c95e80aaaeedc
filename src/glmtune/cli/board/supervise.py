"""Run one command, and keep its exit code: the process between the board and what it started.

    board ... supervise ... glmtune train recipe.yaml      in a session of their own
                  `- exit: the code, once it has ended

The command outlives the board, so another process has to wait for it. What the
page sends as Ctrl-C reaches the whole group: the command ends as it does in a terminal, and this
process writes the code.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

# Commands run in the folder of the user, whose modules must not hide those of Python: -P.
EXIT = "exit"  # in the folder of the job
LOG = "log.txt"


def supervise(folder: Path, arguments: list[str]) -> None:
    """Run `glmtune` with these arguments, its output in the log of the folder."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in a job of a shell, and inherited
    with (folder / LOG).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "glmtune", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    code = child.wait()
    partial = folder / f".{EXIT}"
    partial.write_text(f"{code}\n", encoding="utf-8")
    os.replace(partial, folder / EXIT)


if __name__ == "__main__":
    supervise(Path(sys.argv[1]), sys.argv[2:])
