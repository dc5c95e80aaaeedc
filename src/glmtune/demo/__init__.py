"""The whole road on a small scale: a random base, rows, a run, answers, in a minute on a CPU.

    facts.py        facts and wordings    -> train.json, held_out.json
    checkpoint.py   a seed                -> a checkpoint in ChatGLM3's layout
    folder.py       all of that           -> a folder, and nothing of the user's lost
    score.py        held-out questions    -> answers, right or wrong

The run itself is `glmtune.train.run.fine_tune` with `recipe.yaml`, as for any user.
"""
