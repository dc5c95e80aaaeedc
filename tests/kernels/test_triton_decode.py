"""Triton's kernels for a decode step give what torch gives.

They run on a GPU, where there is one, and in Triton's interpreter elsewhere. That truncates
bfloat16 where a GPU rounds it, so it is float16 and float32 that are compared here.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from glmtune.kernels.decode_attention import DecodeSlots

pytest.importorskip(
    "triton", reason="triton is not installed; torch's wheels for CUDA bring it along"
)
from glmtune.kernels import triton_decode as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOM = 200


@pytest.fixture(autouse=True)
def default_device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


def tensors(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    query = torch.randn(1, heads, 3, dim).to(dtype)
    key, value = torch.randn(2, 4, kv_heads, ROOM, dim).to(dtype)
    return query, key, value


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 2), (3, 3)])
@pytest.mark.parametrize(
    ("dtype", "window"), [(torch.float32, None), (torch.float32, 70), (torch.float16, None)]
)
def test_each_row_attends_to_its_slot_up_to_its_place(
    dtype: torch.dtype, window: int | None, heads: int, kv_heads: int, parts: int
) -> None:
    query, key, value = tensors(heads, kv_heads, 16, dtype)
    place = torch.tensor([0, 131, 64])
    slots = DecodeSlots(place, ROOM)
    with sdpa_kernel(SDPBackend.MATH):
        expected = slots.attend_by_mask(query, key[:3], value[:3], 0.3, window)
    for row, last in enumerate(place):
        key[row, :, last + 1 :] = value[row, :, last + 1 :] = torch.nan  # is not read

    found = kernels.attend(query[0].transpose(0, 1), key, value, place, 0.3, window or ROOM, parts)

    tolerance = {"atol": 2e-3, "rtol": 2e-3} if dtype == torch.float16 else {}
    torch.testing.assert_close(found[None], expected, **tolerance)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Multiply pairs of adjacent channels, as complex numbers, by those of their angles."""
    number = 2 * turn.size(-1)
    pairs = x[..., :number].float().reshape(*x.shape[:-1], -1, 2)
    turned = torch.view_as_real(torch.view_as_complex(pairs) * turn[:, None]).flatten(-2)
    return torch.cat((turned.to(x.dtype), x[..., number:]), dim=-1)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("pairs", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fused_projection_is_rotated_stored_and_attended_from(
    dtype: torch.dtype, pairs: int, parts: int
) -> None:
    _, key, value = tensors(6, 2, 16, dtype)
    fused = torch.randn(3, 11 * 16).to(dtype)[:, : 10 * 16]  # a view, as of a wider product
    angle = torch.rand(1, 3, pairs)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    slot, place = torch.tensor([0, 1, 3]), torch.tensor([0, 131, 0])  # the last one is padding
    query, new_key, new_value = (
        fused[None].unflatten(-1, (-1, 16)).transpose(1, 2).split((6, 2, 2), dim=1)
    )
    turn = torch.complex(cos.float(), sin.float())
    query, new_key = (rotated(each, turn) for each in (query, new_key))
    expected_key, expected_value = key.clone(), value.clone()
    expected_key[slot, :, place] = new_key[0].transpose(0, 1)
    expected_value[slot, :, place] = new_value[0].transpose(0, 1)
    with sdpa_kernel(SDPBackend.MATH):
        expected = DecodeSlots(place, ROOM).attend_by_mask(
            query, expected_key[:3], expected_value[:3], 0.3, None
        )

    found = kernels.rotate_store_attend(fused, cos[0], sin[0], slot, place, key, value, 0.3, parts)

    tolerance = {"atol": 2e-3, "rtol": 2e-3} if dtype == torch.float16 else {}
    torch.testing.assert_close(found[:2], expected[0, :2], **tolerance)
    torch.testing.assert_close(key, expected_key, **tolerance)
    assert torch.equal(value, expected_value)


def test_a_key_and_a_value_of_each_row_go_to_their_places() -> None:
    _, key, value = tensors(4, 2, 16, torch.float16)
    new_key, new_value = torch.randn(2, 3, 5, 16).half()[:, :, 1:3]  # views of a wider product
    slot, place = torch.tensor([0, 1, 3]), torch.tensor([0, 131, 64])
    expected_key, expected_value = key.clone(), value.clone()
    expected_key[slot, :, place] = new_key
    expected_value[slot, :, place] = new_value

    kernels.store(new_key, new_value, slot, place, key, value)

    assert torch.equal(key, expected_key)
    assert torch.equal(value, expected_value)


def test_few_rows_are_split_into_many_parts_and_many_into_none() -> None:
    assert [kernels.choose_parts(2 * rows) for rows in (1, 4, 32, 128, 500)] == [32, 32, 4, 1, 1]


def test_the_operators_say_truly_what_they_change() -> None:
    query, key, value = tensors(4, 2, 16, torch.float32)
    place, new = torch.tensor([0, 5, 9]), torch.randn(3, 2, 16)
    tests = ("test_schema", "test_faketensor")
    rows = query[0].transpose(0, 1)
    torch.library.opcheck(kernels.attend, (rows, key, value, place, 0.3, 9, 2), test_utils=tests)
    fused, angle = torch.randn(3, 8 * 16), torch.rand(3, 4)
    torch.library.opcheck(
        kernels.rotate_store_attend,
        (fused, angle, angle.clone(), place % 3, place, key, value, 0.3, 2),
        test_utils=tests,
    )
    torch.library.opcheck(
        kernels.store, (new, new.clone(), place % 3, place, key, value), test_utils=tests
    )


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from glmtune.kernels import triton_decode

CONSTANTS = {
    "_store": {"DIM": 128},
    "_attend": {"PARTS": 4, "GROUP": 16, "PADDED": 16, "DIM": 128, "KEYS": 64},
    "_rotate_store_attend": {
        "PARTS": 4, "GROUP": 16, "PADDED": 16, "DIM": 128, "KEYS": 64, "PAIRS": 32
    },
    "_combine": {"PARTS": 32, "DIM": 128},
}
TYPES = {"scale": "fp32", "slot": "*i64", "place": "*i64", "exponents": "*fp32", "parts": "*fp32"}
POINTERS = ("fused", "cos", "sin", "new_key", "new_value", "key", "value", "query", "output")
for name, constants in CONSTANTS.items():
    kernel = getattr(triton_decode, name)
    types = {each: "*bf16" if each in POINTERS else "i32" for each in kernel.arg_names}
    types |= {each: TYPES[each] for each in types if each in TYPES}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert "ld.global" in made.asm["ptx"]
print("compiled")
"""


@pytest.mark.slow
def test_the_kernels_compile_for_cards_that_are_not_here() -> None:
    """The interpreter runs what the compiler refuses. It is chosen when triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    found = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.stdout == "compiled\n", found.stderr
