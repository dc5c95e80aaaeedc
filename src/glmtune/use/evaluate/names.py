"""The names of results in the folder of a run; nothing heavy is imported."""


def scores_file(task: str) -> str:
    """Return the name of the result of a task: answers, choice or perplexity."""
    return "scores.json" if task == "answers" else f"scores-{task}.json"


SCORES_FILES = tuple(map(scores_file, ("answers", "choice", "perplexity")))
