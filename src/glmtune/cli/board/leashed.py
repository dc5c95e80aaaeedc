"""Run one command that ends with the process that started it, however that ends.

The starter holds the other end of standard input. It closes with the process, even if that was
killed, and then the command is interrupted as by Ctrl-C.
"""

import os
import signal
import threading


def end_with_starter() -> None:
    """Interrupt this process when its standard input closes."""
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held at the end of Python
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    from glmtune.cli.main import run

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job may ignore it
    threading.Thread(target=end_with_starter, daemon=True).start()
    run()
