"""`glmtune board`: the commands in a browser.

    browser  --JSON-->  board                     reads recipes, metrics and reports itself
                          |- glmtune lint, plan   while the page waits for the answer
                          |- glmtune train, ...   outlive the board; their logs are files
                          `- glmtune serve        the chat, reached through the board

What loads PyTorch is a command in a process of its own, so the board starts at once, stays small,
and does nothing that the command line does not.
"""
