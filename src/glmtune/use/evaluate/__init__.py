"""What a model's answers are worth, by numbers that say how far they can be trusted.

metrics.py      an answer and its reference     -> a score; the names that recipes use
own_metric.py   file.py:score of a user         -> a metric like any other
statistics.py   scores of rows                  -> a mean, its interval, and a paired test
kept.py         answers, kept beside the result -> resumed, and scored again without a model
answers.py      rows of any format              -> generated answers, scored by metrics
choice.py       questions with options A to D   -> the option that the model prefers
perplexity.py   texts                           -> nats per token
run.py          one of these tasks, a model     -> an `Evaluation`, with and without the adapter
results.py      an `Evaluation`                 -> a JSON file, and back
"""
