"""Messages for people."""

import json
from pathlib import Path

import datasets
import pytest

from glmtune.data.sources import read_rows
from glmtune.errors import CheckpointError, DataError, GlmtuneError


@pytest.mark.parametrize("kind", [GlmtuneError, CheckpointError])
def test_every_message_can_be_printed_and_written(kind: type[GlmtuneError]) -> None:
    """Whatever it quotes: JSON can hold half a surrogate pair, and a file name any bytes."""
    message = str(kind("a library says: Neither \ud800 nor x\udcff. 请检查 \U0001f600."))

    assert message == "a library says: Neither \\ud800 nor x\\udcff. 请检查 \U0001f600."
    assert message.encode()


def test_what_a_library_says_of_a_damaged_file_can_be_printed(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "你好"}]).save_to_disk(tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    info["features"]["text"]["dtype"] = "\ud800"
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))

    with pytest.raises(DataError, match=r"cannot be loaded: .*\\ud800") as caught:
        list(read_rows(tmp_path))
    assert str(caught.value).encode()
