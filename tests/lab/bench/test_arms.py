from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from peft.tuners.lora import LoraLayer

from helpers.tiny import collate, tiny_llama, token_rows
from helpers.tiny_bench import STEPS, TinyBench, collator, eval_loss, spec
from hrp.adapters.layers import lora_modules
from hrp_lab.bench.arms import ARMS, register
from hrp_lab.bench.context import NotApplicable, Setup
from hrp_lab.bench.run import execute

NO_OPS = (
    "lora", "gaussian", "random-a", "random-b", "orthogonal", "mica", "rslora", "dora", "lora+",
    "lora-fa", "adalora",
    "eva", "gradient-svd", "gradient-svd-b", "hrp-a", "hrp-b", "asymmetric-a", "asymmetric-b",
    "asymmetric-hrp-a", "asymmetric-hrp-b", "oracle-a", "oracle-b", "full",
)  # fmt: skip
BASE_CHANGING = ("pissa", "olora", "corda", "lora_ga")
FROZEN = {
    "mica": "lora_B", "lora-fa": "lora_A", "asymmetric-a": "lora_A", "asymmetric-b": "lora_B",
    "asymmetric-hrp-a": "lora_A", "asymmetric-hrp-b": "lora_B",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> TinyBench:
    return TinyBench(tmp_path_factory.mktemp("bench"))


def started(bench: TinyBench, arm: str, **changes):
    setup = Setup(bench, spec(arm, **changes))
    return setup, ARMS[arm].start(setup)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**collator(token_rows(4, seed=5))).logits


def factors(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    layers = {name: layer for name, layer in model.get_base_model().named_modules()
              if isinstance(layer, LoraLayer)}  # fmt: skip
    return {
        name: (layer.lora_A["default"].weight.detach().clone(),
               layer.lora_B["default"].weight.detach().clone())
        for name, layer in layers.items()
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # PEFT's arms warn of their own accord
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_learns_within_its_budget(bench, arm):
    record = execute(bench, spec(arm))
    assert record.status == "ok", record.reason
    assert record.costs.total_steps == STEPS
    assert (record.costs.charged_steps > 0) == ARMS[arm].charged
    if arm != "adalora":  # its orthogonality penalty takes longer than the test
        assert record.metrics["eval_loss"] < eval_loss(tiny_llama())["eval_loss"]
    assert [step for step, _ in record.losses] == list(range(5, 1 + record.costs.finetune_steps, 5))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_float32_on_a_bfloat16_base(bench, arm):
    _, start = started(bench, arm, dtype="bfloat16")
    assert {p.dtype for p in start.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arm", NO_OPS)
def test_a_start_leaves_the_base_model_s_logits_as_they_are(bench, arm):
    _, start = started(bench, arm)
    torch.testing.assert_close(logits(start.model), logits(tiny_llama()), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arm", BASE_CHANGING)
def test_a_start_that_changes_the_base_makes_up_for_it(bench, arm):
    _, start = started(bench, arm)
    torch.testing.assert_close(logits(start.model), logits(tiny_llama()), atol=1e-4, rtol=1e-3)
    assert any(B.abs().max() > 1e-3 for _, B in factors(start.model).values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("arm", "factor"), FROZEN.items())
def test_a_frozen_factor_stays_and_the_other_moves(bench, arm, factor):
    setup, start = started(bench, arm)
    before = factors(start.model)
    setup.train(start, 3, 1e-2)
    index = ("lora_A", "lora_B").index(factor)
    for name, after in factors(start.model).items():
        assert torch.equal(after[index], before[name][index]), name
        assert not torch.equal(after[1 - index], before[name][1 - index]), name


def test_hrp_ab_starts_from_the_truncated_preheated_update(bench):
    _, ab = started(bench, "hrp-ab")
    _, a = started(bench, "hrp-a")
    _, b = started(bench, "hrp-b")
    for name, (lora_A, lora_B) in factors(ab.model).items():
        rows, columns = factors(a.model)[name][0], factors(b.model)[name][1]
        update = lora_B @ lora_A
        assert torch.linalg.matrix_norm(update) > 0
        torch.testing.assert_close(update @ rows.mT @ rows, update, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(columns @ columns.mT @ update, update, atol=1e-5, rtol=1e-4)


def test_dora_with_reset_magnitudes_starts_where_the_preheated_lora_does(bench):
    plain, dora = (started(bench, arm)[1].model for arm in ("hrp-ab", "dora-hrp-ab-reset"))
    assert any("magnitude" in name for name, _ in dora.named_parameters())
    torch.testing.assert_close(logits(dora), logits(plain), atol=1e-5, rtol=1e-4)


def test_dora_preheated_as_dora_keeps_its_magnitudes(bench):
    kept = started(bench, "dora-hrp-ab")[1].model
    shared = lora_modules(kept, "default")
    for module in shared.values():
        weight = module.layer.get_base_layer().weight.detach()
        lora_A, lora_B = module.matrices()
        norms = (weight + module.scaling * lora_B @ lora_A).norm(dim=1)
        assert not torch.allclose(module.magnitude().detach(), norms, rtol=1e-5)


def test_the_cut_in_the_metric_is_another_one_of_the_same_preheating(tmp_path):
    bench = TinyBench(tmp_path)
    hrp = {"preheat_rank": 8, "preheat_steps": 6, "learning_rate": 1e-2}
    loss, plain = (execute(bench, spec(arm, hrp=hrp)) for arm in ("hrp-ab", "hrp-ab-frobenius"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert loss.preheat_losses == plain.preheat_losses
    assert loss.metrics != plain.metrics


def test_squeeze_trains_a_high_rank_and_is_judged_at_the_low_one(bench):
    setup, start = started(bench, "squeeze", squeeze={"rank": 8, "tail_share": 0.25})
    setup.train(start, 2, 1e-2)
    high = {module.rank for module in lora_modules(start.model, "default").values()}
    low = {module.rank for module in lora_modules(start.finish(start.model), "default").values()}
    assert (high, low) == ({8}, {setup.rank})
    tail = execute(bench, spec("squeeze-tail", squeeze={"rank": 8, "tail_share": 0.25}))
    assert tail.costs.finetune_steps == STEPS // 4
    assert tail.costs.preheat_steps == STEPS - STEPS // 4


def test_five_fine_tunings_share_an_amortised_start(bench):
    hrp = {"preheat_rank": 8, "preheat_steps": STEPS // 2, "learning_rate": 1e-2}
    record = execute(bench, spec("hrp-ab", hrp=hrp, budgets=["amortised"]))
    assert record.costs.charged_steps == pytest.approx(STEPS // 2 / 5)
    assert record.costs.finetune_steps == round(STEPS - STEPS // 2 / 5)


def test_directions_of_one_seed_share_a_preheating_and_each_is_charged_for_it(tmp_path):
    bench = TinyBench(tmp_path)
    records = [execute(bench, spec(arm)) for arm in ("hrp-a", "hrp-b", "hrp-ab")]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for record in records:
        assert record.costs.preheat_steps == record.costs.charged_steps == 2
        assert record.preheat_losses == records[0].preheat_losses
        assert record.costs.wall_s > min(record.costs.wall_s for record in records) / 10
    other = execute(bench, spec("hrp-a", seeds=[1]))
    assert other.preheat_losses != records[0].preheat_losses


def test_a_share_of_preheating_is_one_of_all_steps(bench):
    settings = {"preheat_rank": 8, "preheat_steps": 0.25, "learning_rate": 1e-2}
    costs = execute(bench, spec("hrp-ab", hrp=settings)).costs
    assert (costs.preheat_steps, costs.finetune_steps) == (STEPS // 4, STEPS - STEPS // 4)


def test_a_share_of_runs_of_two_lengths_is_preheated_twice(tmp_path):
    bench, settings = TinyBench(tmp_path), {"preheat_rank": 8, "preheat_steps": 0.25}
    records = [execute(bench, spec("hrp-ab", hrp=settings, steps=steps)) for steps in (8, 12)]
    assert [record.costs.preheat_steps for record in records] == [2, 3]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_equal_finetuning_charges_on_top(bench):
    record = execute(bench, spec("hrp-a", budgets=["equal_finetuning"]))
    assert (record.costs.finetune_steps, record.costs.total_steps) == (STEPS, STEPS + 2)


def test_gradient_svd_holds_the_leading_right_singular_vectors_of_the_mean_gradient(bench):
    setup, start = started(bench, "gradient-svd")
    model = tiny_llama()
    for batch in setup.batches(1):
        model(**batch).loss.backward()
    for name, (lora_A, lora_B) in factors(start.model).items():
        Vh = torch.linalg.svd(model.get_submodule(name).weight.grad)[2][: setup.rank]
        torch.testing.assert_close((lora_A @ Vh.mT).det().abs(), torch.tensor(1.0), atol=1e-3,
                                   rtol=1e-3)  # fmt: skip
        assert not lora_B.any()


def test_oracle_b_holds_the_leading_left_singular_vectors_of_full_fine_tuning_s_change(bench):
    setup, start = started(bench, "oracle-b")
    full_setup, full = started(bench, "full")
    full_setup.train(full, 3, 3e-3)
    base = tiny_llama()
    for name, (lora_A, lora_B) in factors(start.model).items():
        change = full.model.get_submodule(name).weight - base.get_submodule(name).weight
        U = torch.linalg.svd(change.detach())[0][:, : setup.rank]
        torch.testing.assert_close((U.mT @ lora_B).det().abs(), torch.tensor(1.0), atol=1e-3,
                                   rtol=1e-3)  # fmt: skip
        assert not lora_A.any()
    assert start.costs.charged_steps == 0


def test_full_fine_tuning_trains_every_parameter_in_float32(bench):
    _, start = started(bench, "full", dtype="bfloat16")
    assert all(p.requires_grad and p.dtype == torch.float32 for p in start.model.parameters())


def test_a_bfloat16_base_carries_a_float32_adapter(bench):
    _, start = started(bench, "hrp-b", dtype="bfloat16")
    dtypes = {p.dtype for p in start.model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert start.model.get_base_model().lm_head.weight.dtype == torch.bfloat16


def test_lora_plus_gives_lora_b_its_own_rate(bench):
    _, start = started(bench, "lora+", loraplus={"ratio": 4.0})
    rates = {group["lr"] for group in start.optimizer.param_groups if group["params"]}
    assert rates == {1e-2, 4e-2}


def test_lora_plus_from_hrp_differs_from_hrp_ab_by_its_rates_only(bench):
    _, start = started(bench, "lora+-hrp-ab", loraplus={"ratio": 4.0})
    assert {g["lr"] for g in start.optimizer.param_groups if g["params"]} == {1e-2, 4e-2}
    plain = factors(started(bench, "hrp-ab")[1].model)
    for name, both in factors(start.model).items():
        assert all(map(torch.equal, both, plain[name])), name


def test_random_ab_has_hrp_ab_s_singular_values_at_other_directions(bench):
    drawn, plain = (factors(started(bench, arm)[1].model) for arm in ("random-ab", "hrp-ab"))
    for name, (lora_A, lora_B) in drawn.items():
        r = lora_A.shape[0]
        one, two = lora_B @ lora_A, plain[name][1] @ plain[name][0]
        values = torch.linalg.svdvals(one)[:r], torch.linalg.svdvals(two)[:r]
        torch.testing.assert_close(*values, atol=1e-6, rtol=1e-4)
        cosines = torch.linalg.svdvals(
            torch.linalg.qr(lora_B)[0].mT @ torch.linalg.qr(plain[name][1])[0]
        )
        assert cosines.min() < 0.9, name


def test_adalora_ends_at_its_target_rank(bench):
    setup, start = started(bench, "adalora")
    setup.train(start, STEPS, 1e-2)
    pattern = start.model.peft_config["default"].rank_pattern
    kept = sum(sum(mask) for mask in pattern.values())
    assert kept == setup.rank * len(setup.targets)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arm", "changes", "reason"),
    [
        ("orthogonal", {"lora": {"r": 3, "target_modules": "all-linear"}}, "even rank, got 3"),
        ("pissa", {"lora": {"r": 2, "target_modules": ["embed_tokens"]}}, "kind Embedding"),
        ("olora", {"lora": {"r": 2, "target_modules": ["embed_tokens"]}}, "kind Embedding"),
        ("hrp-a", {"steps": 2}, "charged 2 steps of 2"),
        ("eva", {"eva": {"max_batches": 1, "tau": 1.0}}, "not converged after 1 batches"),
    ],
)
def test_an_arm_that_cannot_run_says_why(bench, arm, changes, reason):
    record = execute(bench, spec(arm, **changes))
    assert record.status == "not-applicable"
    assert reason in record.reason


def test_eva_does_not_run_on_an_encoder_decoder_and_says_why(tmp_path):
    bench = TinyBench(tmp_path)
    bench._tiny = dataclasses.replace(bench._tiny, task_type="SEQ_2_SEQ_LM")
    record = execute(bench, spec("eva"))
    assert record.status == "not-applicable"
    assert "a decoder's layers" in record.reason


def test_a_diverging_run_is_recorded_as_failed_at_once(bench):
    record = execute(bench, spec("full", learning_rates=[1e30]))
    assert record.status == "failed"
    assert "the training loss is" in record.reason
    assert "at step" in record.reason


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'lora' is registered already"):
        register("lora", "again")(lambda setup: None)


def test_random_asymmetric_columns_have_the_norm_of_kaiming_s_rows(bench):
    _, start = started(bench, "asymmetric-b")
    norms = [B.square().sum(0).mean().item() for _, B in factors(start.model).values()]
    assert math.isclose(sum(norms) / len(norms), 1 / 3, rel_tol=0.2)


def test_batches_are_drawn_by_the_seed(bench):
    first, same, other = (
        collate(list(Setup(bench, spec("lora", seeds=[seed])).batches(1)))["input_ids"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_not_applicable_is_no_failure():
    assert not issubclass(NotApplicable, RuntimeError)


def test_equal_compute_charges_preheating_by_its_flops(bench):
    by_steps = execute(bench, spec("hrp-ab")).costs
    by_flops = execute(bench, spec("hrp-ab", budgets=["equal_compute"])).costs
    control = execute(bench, spec("lora")).costs
    assert by_flops.charged_steps > by_steps.charged_steps
    assert by_flops.finetune_steps < by_steps.finetune_steps
    step = control.flops / control.finetune_steps
    assert by_flops.flops <= control.flops * 1.02
    assert by_flops.flops > control.flops - 2 * step
    assert by_steps.flops > by_flops.flops


def test_without_a_rate_of_its_own_preheating_has_that_of_the_run_whatever_ran_before(tmp_path):
    rates = [1e-3, 3e-2]
    changes = {"hrp": {"preheat_rank": 8, "preheat_steps": 4, "learning_rate": None}}

    def losses(folder, order):
        bench = TinyBench(tmp_path / folder)
        runs = {rate: spec("hrp-ab", learning_rates=[rate], **changes) for rate in order}
        return {rate: execute(bench, run).preheat_losses for rate, run in runs.items()}

    first, second = losses("up", rates), losses("down", rates[::-1])
    assert first == second
    assert first[1e-3] != first[3e-2]


def test_a_metric_that_the_task_lacks_is_a_failure_that_names_those_it_has(bench):
    record = execute(bench, spec("lora", metric="accuracy"))
    assert record.status == "failed"
    assert "`metric` must be one of the task's ['eval_loss'], got 'accuracy'" in record.reason


def test_automatic_length_without_time_for_two_looks_does_not_run_and_says_why(bench):
    record = execute(bench, spec("hrp-auto", auto={"subspace_window": 10}))
    assert record.status == "not-applicable"
    assert "two looks at the subspaces take 20" in record.reason


@pytest.mark.parametrize(("arm", "factor"), [("random-a", 0), ("random-b", 1)])
def test_a_random_direction_is_orthonormal_and_differs_by_seed(bench, arm, factor):
    drawn = []
    for seed in (0, 1):
        _, start = started(bench, arm, seeds=[seed])
        for pair in factors(start.model).values():
            direction = pair[factor] if factor == 0 else pair[factor].mT
            torch.testing.assert_close(direction @ direction.mT, torch.eye(len(direction)))
            assert not pair[1 - factor].any()
        drawn.append(direction)
    assert not torch.allclose(*drawn)
