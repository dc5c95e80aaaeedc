"""The whole road on a small scale: nano, rows, a run, answers, in a few minutes on a CPU.

    fractions.py    fractions to reduce   -> train.json, held_out.json
    folder.py       rows and a recipe     -> a folder, and nothing of the user's lost
    score.py        held-out questions    -> answers, right or wrong

The run itself is `glmtune.train.run.fine_tune` with `recipe.yaml`, as for any user.
"""
