"""A complete fine-tuning in a few minutes on a CPU: nano, rows, a run, answers.

    fractions.py    fractions to reduce   -> train.json, held_out.json
    folder.py       rows and a recipe     -> a folder, without losing a user's files
    score.py        held-out questions    -> answers before and after, and an evaluation

The run itself is `glmtune.train.run.fine_tune` with `recipe.yaml`, as for every user.
"""
