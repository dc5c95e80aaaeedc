"""Find what is wrong with a data set, before any training.

findings.py    the checks by id, and what one of them finds
texts.py       one row's text: markers, broken characters, placeholders, refusals, ...
tokens.py      one row's ids: does it end with a stop token, was it cut, what a limit costs
twins.py       pairs of rows: duplicates, contradictions, leaks
scan.py        reads the rows once and applies all of these
report.py      all that was found, for people and machines
run.py         checks a data set; stops a training on errors
clean_copy.py  writes the rows that are worth keeping to a new file
"""
