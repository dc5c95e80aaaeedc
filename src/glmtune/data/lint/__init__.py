"""Find what is wrong with a data set, before any training.

findings.py    the checks by id, and what one of them finds
texts.py       one row's text: markers, broken characters, placeholders, refusals, ...
remnants.py    one row's text: markup, invisible characters, repetition, advertising, ...
tools.py       one row's calls of tools, by the definitions of the tools
habits.py      what all rows show together: cut answers, repeated prompts, one answer for all, ...
pairing.py     whether answers stand with their own questions
prose.py       what kind of text is this: does its sentence end, does it ask, are its sums right
chinese.py     traditional and simplified characters; a text without what makes no difference
tokens.py      one row's ids: does it end with a stop token, was it cut, what a limit costs
twins.py       pairs of rows: duplicates, contradictions, leaks
scan.py        reads the rows once and applies all of these
report.py      all that was found, for people and machines
run.py         checks a data set; stops a training on errors
clean_copy.py  writes the rows that are worth keeping to a new file
"""
