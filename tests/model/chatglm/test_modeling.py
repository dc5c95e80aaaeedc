"""The network keeps the promises of transformers: masks, training, classification, parallelism."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tests.model.chatglm.models import tiny_config, tiny_model
from torch import Tensor, nn

from glmtune.model.chatglm.modeling_chatglm import ChatGLMForSequenceClassification


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_that_is_spelled_out_reaches_attention(
    attn_implementation: str, additive: bool
) -> None:
    model = tiny_model()
    model.set_attn_implementation(attn_implementation)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    # Two texts in one row: the second restarts its positions and must not see the first.
    may_attend = torch.tril(torch.ones(6, 6, dtype=torch.bool))
    may_attend[4:, :4] = False
    mask: Tensor = may_attend[None, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1]])

    with torch.no_grad():
        joined = model(ids, attention_mask=mask, position_ids=positions).logits
        first, second = model(ids[:, :4]).logits, model(ids[:, 4:]).logits

    assert (joined - torch.cat((first, second), dim=1)).abs().max() < 1e-5


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_jump_in_the_positions_is_not_taken_for_the_border_of_a_text(use_cache: bool) -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    positions = torch.tensor([[0, 1, 5, 6]])
    causal = torch.tril(torch.ones(1, 1, 4, 4, dtype=torch.bool))

    with torch.no_grad():
        implied = model(ids, position_ids=positions, use_cache=use_cache).logits
        spelled_out = model(ids, attention_mask=causal, position_ids=positions).logits

    assert (implied - spelled_out).abs().max() < 1e-5


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit_and_no_gradient_is_nan(
    attn_implementation: str, side: str
) -> None:
    model = tiny_model()
    model.set_attn_implementation(attn_implementation)
    ids = torch.tensor([[5, 6, 7, 8]])
    padding = (3, 0) if side == "left" else (0, 3)

    padded = model(F.pad(ids, padding), attention_mask=F.pad(torch.ones_like(ids), padding)).logits
    padded.sum().backward()

    real_logits = padded[:, 3:] if side == "left" else padded[:, :4]
    assert (real_logits - model(ids).logits).abs().max() < 1e-5
    assert padded.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow  # it compiles a kernel
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
def test_flex_attention_agrees_with_sdpa() -> None:
    model = tiny_model(kv_channels=16)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(ids).logits
        model.set_attn_implementation("flex_attention")
        assert (model(ids).logits - expected).abs().max() < 1e-5


def test_attention_weights_come_from_the_eager_implementation() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")

    attentions = model(torch.tensor([[5, 6, 7]]), output_attentions=True).attentions

    assert [tuple(weights.shape) for weights in attentions] == [(1, 4, 3, 3)] * 2
    assert torch.allclose(attentions[0].sum(-1), torch.ones(1, 4, 3))
    assert attentions[0].triu(1).abs().max() == 0


def test_separate_keys_for_every_head_agree_with_groups_of_one() -> None:
    grouped = tiny_model(multi_query_group_num=4)
    separate = tiny_model(multi_query_attention=False)
    weights = grouped.state_dict()
    for name in [name for name in weights if "query_key_value" in name]:
        # all queries, all keys, all values  ->  query, key and value head by head
        parts = weights[name].unflatten(0, (3, 4, 8))
        weights[name] = parts.transpose(0, 1).flatten(0, 2)
    separate.load_state_dict(weights)
    ids = torch.tensor([[5, 6, 7, 8]])

    with torch.no_grad():
        assert (separate(ids).logits - grouped(ids).logits).abs().max() < 1e-5


def test_the_forward_pass_compiles_to_one_graph() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    with torch.no_grad():
        assert (compiled(ids).logits - model(ids).logits).abs().max() < 1e-5


def test_the_loss_of_half_precision_is_float32() -> None:
    model = tiny_model().to(torch.bfloat16)
    ids = torch.tensor([[5, 6, 7, 8]])

    output = model(ids, labels=ids)

    assert output.loss.dtype == torch.float32
    expected = F.cross_entropy(output.logits[0, :-1].float(), ids[0, 1:])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_is_divided_by_num_items_in_batch() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])

    mean = model(ids, labels=ids).loss
    share = model(ids, labels=ids, num_items_in_batch=torch.tensor(12)).loss

    assert share.item() == pytest.approx(mean.item() * 3 / 12, rel=1e-6)


def test_only_the_logits_that_are_kept_are_computed() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])

    whole = model(ids).logits

    for kept, positions in ((1, [3]), (torch.tensor([0, 2]), [0, 2])):
        logits = model(ids, logits_to_keep=kept).logits
        assert torch.allclose(logits, whole[:, positions], atol=1e-5)


def test_inputs_may_be_embeddings_but_not_both() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    embeds = model.get_input_embeddings()(ids)

    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


@contextmanager
def kept_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Count what autograd keeps for the backward pass, apart from the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    total: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total
    total.append(sum(kept.values()))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_saves_memory_with_lora_on(use_reentrant: bool) -> None:
    model = tiny_model(num_layers=6)
    adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False))
    ids = torch.arange(5, 53).reshape(1, -1)

    def train() -> tuple[int, dict[str, Tensor]]:
        adapted.zero_grad()
        with kept_bytes(adapted) as kept:
            loss = adapted.train()(ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in adapted.named_parameters() if p.requires_grad}
        return kept[0], gradients

    plain_bytes, plain = train()
    adapted.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        adapted.enable_input_require_grads()
    checkpointed_bytes, checkpointed = train()

    assert len(plain) == 12
    assert checkpointed_bytes < plain_bytes / 4
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(checkpointed[name], gradient, atol=1e-6), name


def test_dropout_acts_in_training_only() -> None:
    model = tiny_model(hidden_dropout=0.5, attention_dropout=0.5)
    ids = torch.tensor([[5, 6, 7, 8]])

    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)


def test_autocast_computes_in_half_precision_over_float32_weights() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids, labels=ids).logits

    assert logits.dtype == torch.bfloat16
    assert (logits.float() - model(ids).logits).abs().max() < 0.5


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_classified_by_its_last_real_token(side: str) -> None:
    torch.manual_seed(0)
    model = ChatGLMForSequenceClassification(tiny_config(num_labels=3)).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    padding = (3, 0) if side == "left" else (0, 3)

    alone = model(ids, labels=torch.tensor([2]))
    padded = model(F.pad(ids, padding), attention_mask=F.pad(torch.ones_like(ids), padding))

    assert alone.logits.shape == (1, 3)
    assert (padded.logits - alone.logits).abs().max() < 1e-5
    expected = F.cross_entropy(alone.logits, torch.tensor([2]))
    assert alone.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_classifier_keeps_its_published_names() -> None:
    model = ChatGLMForSequenceClassification(tiny_config())

    names = {name for name, _ in model.named_parameters() if not name.startswith("transformer.")}

    assert names == {"classifier_head.weight", "classifier_head.bias"}


TENSOR_PARALLEL = """
import sys
import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration as Model

folder = sys.argv[1]
ids = torch.tensor([[5, 6, 7, 8]])
whole = Model.from_pretrained(folder)
split = Model.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto"))
assert dist.get_world_size() == 2
layer = split.transformer.encoder.layers[0]
for module in (layer.self_attention.query_key_value, layer.mlp.dense_4h_to_h):
    assert module.weight.to_local().numel() == module.weight.numel() // 2
a, b = whole(ids, labels=ids), split(ids, labels=ids)
a.loss.backward()
b.loss.backward()
assert (a.logits - b.logits).abs().max() < 1e-4
of_split = dict(split.named_parameters())
for name, parameter in whole.named_parameters():
    gradient = of_split[name].grad
    gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    assert (gradient - parameter.grad).abs().max() < 1e-4, name
with torch.no_grad():
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(whole.generate(ids, **settings), split.generate(ids, **settings))
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_the_weights_and_agree_with_one(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    script = tmp_path / "tensor_parallel.py"
    script.write_text(TENSOR_PARALLEL, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    result = subprocess.run(
        [*launch, str(script), str(tiny_model_dir)], capture_output=True, text=True, check=False
    )

    assert result.stdout.count("equal") == 2, result.stderr[-3000:]


def test_the_parallel_plans_name_modules_that_exist() -> None:
    model = tiny_model()
    names = {name for name, _ in model.transformer.named_modules()}

    for plan in (model.config.base_model_tp_plan, model.config.base_model_pp_plan):
        assert plan
        for name in plan:
            assert name.replace("*", "0") in names
    blocks = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= blocks


def test_a_model_can_be_copied() -> None:
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])

    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_output_layer_gets_states_for_which_its_weight_is_not_copied(rows: int) -> None:
    model = tiny_model()
    given: list[Tensor] = []
    model.transformer.output_layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))

    logits = model(input_ids=torch.ones(rows, 5, dtype=torch.long), logits_to_keep=2).logits

    # For a slice torch copies a bfloat16 weight once per row; one row says that it is contiguous.
    assert (given[0].shape, given[0].stride()) == ((2 * rows, 32), (32, 1))
    assert logits.shape[:2] == (rows, 2)


def test_the_last_mlp_skips_unscored_tokens_and_nothing_else_changes() -> None:
    scored, plain = tiny_model(), tiny_model()
    plain.load_state_dict(scored.state_dict())
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    is_kept = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1, 0]]).bool()
    seen: list[int] = []
    for block in scored.transformer.encoder.layers:
        block.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 0].numel()))

    def score(hidden: Tensor, output_layer: nn.Module) -> Tensor:
        return output_layer(hidden).square().sum()

    loss = scored(ids, logits_to_keep=is_kept, score=score).loss
    expected = plain(ids).logits[is_kept].square().sum()
    loss.backward()
    expected.backward()

    assert seen == [14] * (len(seen) - 1) + [5]
    torch.testing.assert_close(loss, expected)
    for (name, found), (_, other) in zip(
        scored.named_parameters(), plain.named_parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_without_a_score_the_last_hidden_states_are_all_there() -> None:
    model = tiny_model()

    output = model(torch.ones(1, 5, dtype=torch.long), logits_to_keep=1, output_hidden_states=True)

    assert output.logits.shape[:2] == (1, 1)
    assert {states.shape[:2] for states in output.hidden_states} == {(1, 5)}
