"""`python -m glmtune` is the command `glmtune`."""

from glmtune.cli.main import run

if __name__ == "__main__":
    run()
