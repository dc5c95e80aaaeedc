"""LoRA of several adapters in one pass: every token gets the update of its own adapter."""

import torch
from torch import nn

from glmtune.kernels.routed_lora import RoutedLora, Router


def test_every_token_gets_the_update_of_its_own_adapter_and_of_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(6, 5)
    router = Router()
    layer = RoutedLora(base, router)
    pairs = {
        name: (torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator))
        for name in ("x.1", "y")
    }
    for name, (lora_a, lora_b) in pairs.items():
        layer.add(name, lora_a, lora_b, 0.5)
    x = torch.randn(1, 6, 6, generator=generator)

    router.assign(["y", "", "x.1", "unknown here"], [1, 1, 3, 1], "cpu")
    with torch.no_grad():
        got, expected = layer(x), base(x)
        for token, name in enumerate(["y", "", "x.1", "x.1", "x.1", ""]):
            if name:
                lora_a, lora_b = pairs[name]
                expected[0, token] += 0.5 * (lora_b @ (lora_a @ x[0, token]))
        last = layer(x[0, [0, 1, 4, 5]])  # a model may score the last token of each only

    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(last, expected[0, [0, 1, 4, 5]])
    assert not torch.allclose(expected, base(x))


def test_a_step_of_fixed_rows_gives_what_tokens_of_their_own_do() -> None:
    torch.manual_seed(0)
    router = Router()
    layer = RoutedLora(nn.Linear(6, 5).bfloat16(), router)
    layer.add("x", torch.randn(2, 6), torch.randn(5, 2), 0.5)
    layer.add("y", torch.randn(3, 6), torch.randn(5, 3), 2.0)
    given, adapters = torch.randn(1, 4, 6).bfloat16(), ["y", "", "x", "y"]
    router.assign(adapters, [1, 1, 1, 1], "cpu")
    expected = layer(given)

    in_use = router.assign_rows(adapters, 7, torch.device("cpu"))
    flags = router.own_rows(4)

    assert in_use == ("x", "y")
    assert torch.equal(layer(given), expected)
    assert flags is not None
    router.assign_rows(["", "x"], 7, torch.device("cpu"))
    assert flags["x"][:, 0].tolist() == [False, True, False, False]  # the same tensor
