import pytest
import torch

from glmtune.recipe.sections import TrainingSection
from glmtune.train.optimizer import make_optimizer, on_device_settings

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.mark.parametrize(
    ("optim", "devices", "expected"),
    [
        ("adamw_torch", {GPU}, {"fused": True}),
        ("adamw_torch", {CPU}, {}),
        ("adamw_torch", {GPU, CPU}, {}),  # some weights are offloaded
        ("adamw_bnb_8bit", {GPU}, {}),
    ],
)
def test_one_kernel_updates_all_weights_only_where_they_are_on_a_gpu(
    optim: str, devices: set[torch.device], expected: dict[str, bool]
) -> None:
    section = TrainingSection(learning_rate=1e-4, optim=optim)  # type: ignore[arg-type]

    assert on_device_settings(section, devices) == expected


def test_the_optimizer_of_a_cpu_is_as_it_was() -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), TrainingSection(learning_rate=1e-4))

    assert [group["fused"] for group in optimizer.param_groups] == [None, None]
