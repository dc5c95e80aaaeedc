"""`python -m glmtune` is the command `glmtune`."""

import sys


def main() -> None:
    """Run the command line; a Ctrl-C while its modules are imported ends it in one line too."""
    try:
        from glmtune.cli.main import run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
