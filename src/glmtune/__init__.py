"""Fine-tune ChatGLM on today's libraries, with proofs that it worked.

The modules follow one row of data from a line in a file to an answer; `docs/journey.md`
walks through them. Importing this package is cheap: torch loads when a function needs it.
"""

__version__ = "0.1.0"
