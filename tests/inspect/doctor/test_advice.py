"""What will not work on a machine is reported with a remedy; a good machine gets no advice."""

from dataclasses import replace

from glmtune.inspect.doctor.advice import advise
from glmtune.inspect.doctor.machine import Machine
from glmtune.machine import Gpu, Version
from glmtune.units import GIB

GOOD = Machine(
    system="Linux",
    cpu="a CPU",
    num_cores=8,
    memory_bytes=64 * GIB,
    available_bytes=60 * GIB,
    disk_free_bytes={"working directory": 100 * GIB, "hub cache": 100 * GIB},
    native_dtypes=("bfloat16", "float32"),
    gpus=(Gpu("a GPU", 24 * GIB, 23 * GIB, has_bfloat16=True),),
    versions=(Version("torch", "2.13.0", ">=2.13,<3", fits=True),),
    models=(),
    environment={},
    torch_problem="",
)


def test_a_good_machine_gets_no_advice() -> None:
    assert advise(GOOD) == []


def test_what_will_not_work_comes_before_what_is_good_to_know() -> None:
    poor = replace(
        GOOD,
        available_bytes=4 * GIB,
        native_dtypes=("float32",),
        gpus=(),
        disk_free_bytes={"working directory": GIB // 2, "hub cache": 3 * GIB},
        versions=(Version("peft", "0.11.0", ">=0.21,<0.22", fits=False),),
        environment={"HF_HUB_OFFLINE": "1"},
    )

    advice = advise(poor)

    stopping = [one.problem for one in advice if one.stops]
    assert [one.stops for one in advice] == sorted((one.stops for one in advice), reverse=True)
    assert "peft is 0.11.0, expected >=0.21,<0.22" in stopping[0]
    assert "disk of the working directory" in stopping[1]
    assert "hub cache has 3.0 GiB free" in stopping[2]
    assert "11.6 GiB in 16 bit, and 4.0 GiB are free" in stopping[3]
    assert any("HF_HUB_OFFLINE" in one.problem for one in advice if not one.stops)


def test_a_source_tree_is_noted_since_its_requirements_are_unknown() -> None:
    [note] = advise(replace(GOOD, is_installed=False))

    assert "not installed" in note.problem
    assert "pip install -e ." in note.remedy
    assert not note.stops
