"""Moments seen by hooks are those of a dense computation, on every kind of layer."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import one_hot, unfold

import hrp
from helpers.tiny import collate, fingerprint, loader, tiny_llama, token_rows, with_lora
from hrp.adapters.layers import lora_modules
from hrp.adapters.moments import Moments
from hrp.adapters.reading import read_spectrum

TINY_DAMPING = 1e-9


class Kinds(nn.Module):
    """One layer of each kind, in a chain; the base is random."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 6)
        self.conv1d = nn.Conv1d(6, 8, 3, padding=1)
        self.conv2d = nn.Conv2d(1, 5, (2, 3), padding=(0, 1))
        self.linear = nn.Linear(8, 7)

    def forward(self, ids):
        hidden = self.conv1d(self.embedding(ids).mT)
        hidden = torch.tanh(hidden)
        wide = self.conv2d(hidden[:, None]).mean((1, 2))
        return self.linear(hidden.mT).square().mean() + wide.square().mean()


def chain(**settings):
    torch.manual_seed(0)
    names = ["embedding", "conv1d", "conv2d", "linear"]
    model = get_peft_model(Kinds(), LoraConfig(r=4, target_modules=names, **settings))
    for module in lora_modules(model, "default").values():
        for factor in module.parameters():
            torch.nn.init.normal_(factor, std=0.3)
    return model


def patches(name, layer, x):
    """Inputs of a layer as rows of the matrix that its update multiplies."""
    if name == "embedding":
        return one_hot(x, layer.num_embeddings).flatten(0, 1).double()
    if name == "conv1d":
        return unfold(x[:, :, None], (1, 3), padding=(0, 1)).mT.flatten(0, 1).double()
    if name == "conv2d":
        return unfold(x, (2, 3), padding=(0, 1)).mT.flatten(0, 1).double()
    return x.flatten(0, -2).double()


def dense_moments(model, ids, scale=lambda module: 1.0):
    """X = E[x x^T] and Y = E[dL/dy dL/dy^T] of each layer, by its inputs and outputs in float64."""
    seen, handles = {}, []
    modules = lora_modules(model, "default")
    for name, module in modules.items():

        def look(layer, inputs, output, name=name):
            output.retain_grad()
            seen[name] = inputs[0].detach(), output

        handles.append(module.layer.register_forward_hook(look))
    model(ids).backward()
    moments = {}
    for name, module in modules.items():
        x, y = seen[name]
        rows = patches(name, module.layer.get_base_layer(), x)
        grad = y.grad if name in ("embedding", "linear") else y.grad.movedim(1, -1)
        grad = grad.reshape(-1, grad.shape[-1]).double() * scale(module)
        touched = (grad != 0).any(1)
        moments[name] = rows[touched].T @ rows[touched], grad[touched].T @ grad[touched]
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return moments


def learned(module):
    generator = torch.Generator().manual_seed(3)
    torch.nn.init.normal_(module.parameters()[1], std=0.1, generator=generator)


def observed(model, batches):
    modules = lora_modules(model, "default")
    moments = Moments(modules)
    with moments.hooked():
        moments.observing = True
        for ids in batches:
            model(ids).backward()
    model.zero_grad()
    return modules, moments


def some_ids(seed):
    return torch.randint(0, 13, (5, 9), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_moments_of_each_kind_of_layer_are_those_of_its_inputs_and_gradients(use_dora):
    model = chain(use_dora=use_dora)

    def scale(module):
        if not use_dora:
            return 1.0
        norms = module.layer.get_base_layer().weight
        matrix = (
            norms.T if isinstance(norms, nn.Parameter) and module.name == "embedding" else norms
        )
        lora_A, lora_B = module.matrices()
        update = module.scaling * lora_B @ lora_A
        whole = matrix.detach().reshape(update.shape) + update
        return (module.magnitude().detach().flatten() / whole.norm(dim=1)).double()

    ids = some_ids(1)
    expected = dense_moments(model, ids, scale)
    modules, moments = observed(model, [ids])
    for name, (X, Y) in expected.items():
        lora_A, lora_B = (factor.double() for factor in modules[name].matrices())
        sums = moments.total(name)
        scaling = modules[name].scaling
        torch.testing.assert_close(
            sums.inputs.double(), lora_A @ X @ lora_A.T, rtol=1e-4, atol=1e-5
        )
        G = scaling**2 * lora_B.T @ Y @ lora_B
        gradients = sums.gradients.double() / G.norm()
        torch.testing.assert_close(gradients, G / G.norm(), rtol=1e-3, atol=1e-5)


def full_space_optimum(W, X, Y, rank):
    """The best approximation of rank r of W in the norm || Y^(1/2) . X^(1/2) ||, densely."""

    def root(M):
        values, vectors = torch.linalg.eigh(M)
        values = values.clamp(min=0)
        inverse = torch.where(values > 1e-12 * values.max(), values, torch.inf).rsqrt()
        return (vectors * values.sqrt()) @ vectors.T, (vectors * inverse) @ vectors.T

    (Yh, Yi), (Xh, Xi) = root(Y), root(X)
    U, S, Vh = torch.linalg.svd(Yh @ W @ Xh)
    return Yi @ (U[:, :rank] * S[:rank]) @ Vh[:rank] @ Xi, Yh, Xh


def test_the_cut_is_the_optimum_of_a_dense_computation_in_the_full_space():
    model = chain()
    batches = [some_ids(seed) for seed in range(12)]
    X, Y = {}, {}
    for ids in batches:
        for name, (x, y) in dense_moments(model, ids).items():
            X[name], Y[name] = X.get(name, 0) + x, Y.get(name, 0) + y
    modules, moments = observed(model, batches)
    spectrum = read_spectrum(modules, moments)
    for name, module in spectrum.items():
        lora_A, lora_B = (factor.double() for factor in modules[name].matrices())
        W = modules[name].scaling * lora_B @ lora_A
        best, Yh, Xh = full_space_optimum(W, X[name], Y[name], 2)
        lora_B, lora_A = module.truncate(2, "loss", damping=TINY_DAMPING)
        plain = module.crop(2)
        ours, leading = lora_B @ lora_A, plain.U * plain.S @ plain.Vh
        costs = [
            float((Yh @ (W - update.double()) @ Xh).norm())
            for update in (ours, best, leading, torch.zeros_like(ours))
        ]
        assert costs[0] <= costs[1] * (1 + 1e-3) + 1e-4 * costs[3], name
        assert costs[0] < costs[2], name


def test_sums_are_the_same_however_many_modules_are_added_up_at_once(monkeypatch):
    batches = [some_ids(1), some_ids(2)[:, :5]]  # of two lengths
    modules, together = observed(chain(), batches)
    monkeypatch.setattr("hrp.adapters.moments._WAITING_BYTES", 0)
    _, alone = observed(chain(), batches)
    for name in modules:
        for one, other in zip(together.total(name), alone.total(name), strict=True):
            torch.testing.assert_close(one, other)


def test_a_gradient_at_the_level_of_rounding_counts_as_none():
    moments = Moments(lora_modules(chain(), "default"))
    moments.add("linear", torch.ones(3, 4), torch.tensor([[1.0] * 4, [1e-7] * 4, [1e-5] * 4]))
    assert torch.equal(moments.total("linear").inputs, torch.full((4, 4), 2.0))


def test_a_module_that_sees_no_token_has_no_moments():
    moments = Moments(lora_modules(chain(), "default"))
    moments.add("linear", torch.zeros(0, 4), torch.zeros(0, 4))
    assert moments.total("linear") is None


def test_moments_beyond_float32_leave_the_module_to_the_plain_cut(model):
    modules = lora_modules(model, "default")
    for module in modules.values():
        learned(module)
    moments = Moments(modules)
    name, module = next(iter(modules.items()))
    moments.add(name, torch.ones(2, module.rank), torch.full((2, module.rank), 1e25))
    assert not read_spectrum(modules, moments)[name].has_metric


def test_padding_and_overflowing_gradients_are_left_out():
    model = chain()
    moments = Moments(lora_modules(model, "default"))
    z, g = torch.ones(3, 4), torch.tensor([[1.0] * 4, [0.0] * 4, [float("inf")] * 4])
    moments.add("linear", z, g)
    sums = moments.total("linear")
    assert torch.equal(sums.inputs, torch.ones(4, 4))
    assert torch.equal(sums.gradients, torch.ones(4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_half_precision_is_added_up_in_float32(device, dtype):
    generator = torch.Generator().manual_seed(0)
    z, g = (torch.randn(4096, 4, generator=generator).to(device, dtype) for _ in range(2))
    moments = Moments(lora_modules(chain().to(device), "default"))
    with torch.autocast(device, dtype=torch.bfloat16):
        moments.add("linear", z, g)
    sums = moments.total("linear")
    for seen, x in ((sums.inputs, z.double()), (sums.gradients, g.double())):
        assert seen.dtype == torch.float32
        torch.testing.assert_close(seen.double(), x.mT @ x, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_each_token_once(reentrant):
    totals = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = with_lora(tiny_llama(), lora_dropout=0.0)
        for module in lora_modules(model, "default").values():
            learned(module)
        model.train()
        if checkpointed:
            model.enable_input_require_grads()
            # Newer releases of transformers have it under another name.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
        moments = Moments(lora_modules(model, "default"))
        with moments.hooked():
            moments.observing = True
            model(**collate(token_rows(4))).loss.backward()
        totals.append({n: moments.total(n) for n in lora_modules(model, "default")})
    for name, plain in totals[0].items():
        assert float(plain.gradients.trace()) > 0
        torch.testing.assert_close(plain.inputs, totals[1][name].inputs)
        torch.testing.assert_close(plain.gradients, totals[1][name].gradients)


def test_accumulated_batches_sum_up(model):
    config = hrp.HRPConfig(8, 4, learning_rate=1e-3, statistics_steps=4)
    spectrum = hrp.preheat(model, config, dataloader=loader())
    assert all(module.has_metric for module in spectrum.values())
    assert spectrum.provenance["without_metric"] == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_exception(model, error):
    before = fingerprint(model)

    def failing(model, batch, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            raise error
        return model(**batch).loss

    config = hrp.HRPConfig(8, 4, learning_rate=1e-3, statistics_steps=4)
    with pytest.raises(error):
        hrp.preheat(model, config, dataloader=loader(), loss_fn=failing)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    after = fingerprint(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_the_last_steps_are_observed(model):
    seen = []

    def loss(model, batch):
        layers = [m for n, m in model.named_modules() if n.endswith("q_proj.lora_A.hrp_preheating")]
        out = model(**batch).loss
        seen.append(len(layers))
        return out

    two = hrp.preheat(model, hrp.HRPConfig(8, 6, learning_rate=1e-2, statistics_steps=2),
                      dataloader=loader(), loss_fn=loss)  # fmt: skip
    six = hrp.preheat(model, hrp.HRPConfig(8, 6, learning_rate=1e-2, statistics_steps=6),
                      dataloader=loader())  # fmt: skip
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(two[name].S, six[name].S), "observing must not change what is learned"
    assert not torch.allclose(two[name].right_metric, six[name].right_metric)


def test_a_factor_of_the_loss_does_not_change_the_cut(model):
    cuts = []
    for factor in (1.0, 512.0):
        moments = Moments(lora_modules(model, "default"))
        for module in lora_modules(model, "default").values():
            learned(module)
        with moments.hooked():
            moments.observing = True
            (factor * model(**collate(token_rows(8))).loss).backward()
        model.zero_grad()
        spectrum = read_spectrum(lora_modules(model, "default"), moments)
        cuts.append({n: m.truncated(1) for n, m in spectrum.items()})
    for name in cuts[0]:
        one, other = (cut[name].U * cut[name].S @ cut[name].Vh for cut in cuts)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
