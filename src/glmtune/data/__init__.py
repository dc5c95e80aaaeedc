"""Training data: files and hub data sets -> rows -> conversations -> token ids -> batches.

sources.py         finds files, folders and hub data sets, and reads their rows one by one
splits.py          which files of a folder belong to which split; folders.py, hubs.py,
                   dataset_info.py: the other places that rows come from
text_files.py      bytes and lines: decompression, encodings
json_rows.py       JSON and JSON Lines
table_rows.py      CSV, TSV, Parquet, plain text
rows.py            a row, and a row that cannot be used
formats/           a row -> a conversation, or the two sides of a preference pair
dataset.py         the one loop over the rows of a data set, with the format of each file
fit.py             fits examples to max_length
encode.py          conversations -> examples; pairs.py for preferences, texts.py for documents
writer.py          examples and bad rows -> files, counted; cache.py encodes data once
store.py           encoded examples on disk, memory-mapped
packing.py         examples -> packs; batches.py -> the tensors of an optimizer step
lint/              what is wrong with rows, before any training
"""
