"""Every mistake gets an error that names the parameter, the range, the value and the remedy.

And it gets it before any training: `UnreadLoader` fails the test if a batch is drawn.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import Trainer, TrainingArguments

import hrp
from helpers.factors import module_spectrum
from helpers.tiny import (
    assert_identical,
    collate,
    fingerprint,
    loader,
    tiny_llama,
    token_rows,
    unchecked,
    with_lora,
)

CONFIG = hrp.HRPConfig(preheat_rank=16, preheat_steps=2)
initialize = hrp.initialize_lora_hrp_weights


class UnreadLoader:
    def __iter__(self):
        raise AssertionError("training started")


def preheat(model, config=CONFIG, **data):
    return unchecked(hrp.preheat)(model, config, **data)


def test_a_bare_model_is_refused():
    with pytest.raises(TypeError, match="PeftModel with a LoRA adapter, got LlamaForCausalLM"):
        preheat(tiny_llama(), dataloader=UnreadLoader())


def test_an_adapter_that_is_no_lora_is_refused():
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    with pytest.raises(TypeError, match="must be of type LORA, got IA3"):
        preheat(get_peft_model(tiny_llama(), config), dataloader=UnreadLoader())


def test_an_unknown_adapter_is_refused_with_those_there_are(model):
    with pytest.raises(ValueError, match=r"must be one of \['default'\], got 'other'"):
        preheat(model, dataloader=UnreadLoader(), adapter_name="other")


def test_a_preheat_rank_is_held_against_the_directions_that_a_module_has():
    model = with_lora(tiny_llama(), r=40)  # 16 of k_proj and v_proj, 32 of the others
    with pytest.raises(ValueError, match="at least the adapter's rank 32, got 31 for module"):
        preheat(model, hrp.HRPConfig(31, 2), dataloader=UnreadLoader())


def test_a_preheat_rank_below_the_adapter_rank_is_refused(model):
    message = "`preheat_rank` must be at least the adapter's rank 4, got 3 for module"
    with pytest.raises(ValueError, match=message):
        preheat(model, hrp.HRPConfig(3, 2), dataloader=UnreadLoader())


def test_preheat_rank_is_held_against_the_rank_pattern():
    model = with_lora(tiny_llama(), rank_pattern={"up_proj": 12})
    with pytest.raises(ValueError, match=r"rank 12, got 8 for module .*up_proj"):
        preheat(model, hrp.HRPConfig(8, 2), dataloader=UnreadLoader())


def test_neither_loader_nor_trainer_and_both_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"exactly one of .* got neither"):
        preheat(model)
    with pytest.raises(ValueError, match=r"exactly one of .* got both"):
        preheat(model, dataloader=UnreadLoader(), trainer_cls=Trainer)


def test_trainer_arguments_without_a_trainer_are_refused(model):
    with pytest.raises(TypeError, match=r"\['args'\] go with `trainer_cls`"):
        preheat(model, dataloader=UnreadLoader(), args=None)


def test_an_empty_dataloader_is_refused(model):
    with pytest.raises(ValueError, match="`dataloader` must hold at least one batch"):
        preheat(model, dataloader=[])


def test_an_iterator_that_runs_dry_is_refused(model):
    with pytest.raises(ValueError, match="cannot start again; pass a DataLoader"):
        preheat(model, dataloader=iter([collate(token_rows(4))]))


def test_an_empty_iterable_is_refused(model):
    with pytest.raises(ValueError, match="at least one batch, got an empty one"):
        preheat(model, dataloader=iter([]))


def test_a_batch_without_labels_is_refused(model):
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"must hold `labels`, got \['input_ids'\]"):
        preheat(model, dataloader=[batch])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_its_step(model, bad):
    before, calls = fingerprint(model), []

    def loss_fn(model, batch):
        calls.append(1)
        loss = model(**batch).loss
        return loss * bad if len(calls) == 2 else loss

    with pytest.raises(hrp.NonFiniteLossError, match="at preheating step 2; lower"):
        preheat(model, hrp.HRPConfig(16, 5), dataloader=loader(), loss_fn=loss_fn)
    assert len(calls) == 2
    assert_identical(before, fingerprint(model))


def test_a_nan_in_the_trainer_stops_at_its_step(model, tmp_path):
    class Diverging(Trainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * float("nan")

    data = {"args": arguments(tmp_path), "train_dataset": token_rows(), "data_collator": collate}
    with pytest.raises(hrp.NonFiniteLossError, match="at preheating step 1"):
        preheat(model, trainer_cls=Diverging, **data)


def arguments(folder):
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"trainer_cls": "Trainer"}, TypeError, "`trainer_cls` must be transformers.Trainer"),
        ({"args": None}, TypeError, "`args` must be the TrainingArguments"),
        ({"train_dataset": None}, ValueError, "requires a train_dataset"),
        ({"train_dataset": []}, ValueError, "`train_dataset` must hold at least one"),
        ({"peft_config": LoraConfig()}, TypeError, "unexpected keyword argument 'peft_config'"),
        ({"loss_fn": print}, ValueError, r"\['loss_fn'\] go with `dataloader`"),
        ({"train_dataset": loader()}, TypeError, "must be a data set, got a DataLoader"),
    ],
)
def test_trainer_arguments_that_cannot_work_are_refused(model, tmp_path, changes, error, message):
    data = {
        "trainer_cls": Trainer,
        "args": arguments(tmp_path),
        "train_dataset": token_rows(),
    }
    with pytest.raises(error, match=message):
        preheat(model, **data | changes)


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("learning_rate", -1.0, "finite and > 0"),
        ("learning_rate", 0.0, "finite and > 0"),
        ("per_device_train_batch_size", 0, "an integer >= 1"),
        ("gradient_accumulation_steps", 0, "an integer >= 1"),
    ],
)
def test_training_arguments_that_allow_no_step_are_refused(model, tmp_path, name, value, range_):
    args = arguments(tmp_path)
    setattr(args, name, value)
    with pytest.raises(ValueError, match=f"`args.{name}` must be {range_}, got {value}"):
        preheat(model, trainer_cls=Trainer, args=args, train_dataset=token_rows())


def test_what_is_no_config_or_no_loader_is_refused(model):
    with pytest.raises(TypeError, match=r"`config` must be an `hrp.HRPConfig`, got dict"):
        preheat(model, {"preheat_rank": 8}, dataloader=UnreadLoader())
    with pytest.raises(
        TypeError, match=r"`dataloader` must give mappings .* got batches of type str"
    ):
        preheat(model, dataloader="rows.jsonl")


def test_a_scaling_of_zero_is_refused_before_training():
    model = with_lora(tiny_llama(), lora_alpha=0)
    with pytest.raises(ValueError, match=r"scaling must be > 0, got 0.0 for module .*lora_alpha"):
        preheat(model, dataloader=UnreadLoader())


def test_a_merged_adapter_is_refused_and_the_base_stays(model):
    model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"]))
    model.merge_adapter()
    before = fingerprint(model)
    for act in (
        lambda: preheat(model, dataloader=UnreadLoader(), adapter_name="other"),
        lambda: initialize(model, hrp.Spectrum({"m": module_spectrum()})),
    ):
        with pytest.raises(ValueError, match=r"no adapter may be merged, got \['default'\]"):
            act()
    assert_identical(before, fingerprint(model))


@pytest.mark.parametrize("start", ["pissa", False])
def test_apply_hrp_refuses_before_training_what_it_cannot_start(start):
    model = with_lora(tiny_llama(), init_lora_weights=start)
    with pytest.raises(ValueError, match=r"which leave the base weights|was trained or loaded"):
        unchecked(hrp.apply_hrp)(model, CONFIG, dataloader=UnreadLoader())


def test_a_spectrum_s_path_is_no_spectrum(model):
    with pytest.raises(TypeError, match=r"must be an `hrp.Spectrum`, got str; read a folder"):
        unchecked(initialize)(model, "runs/spectrum")


def test_too_little_data_for_the_steps_is_an_error(model, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    data = {"args": arguments(tmp_path), "train_dataset": Stream(), "data_collator": collate}
    with pytest.raises((hrp.PreheatingError, ValueError)):
        preheat(model, trainer_cls=Trainer, **data)


def test_an_untrained_module_is_named(model):
    def blind(model, batch):
        return (
            model.get_base_model()
            .model.layers[0](
                model.get_base_model().model.embed_tokens(batch["input_ids"]),
                position_embeddings=model.get_base_model().model.rotary_emb(
                    torch.zeros(1), torch.arange(12)[None]
                ),
            )
            .square()
            .mean()
        )

    with pytest.warns(UserWarning, match=r"no gradient has reached 7 of 14.*model.layers.1.*down"):
        spectrum = preheat(model, dataloader=loader(), loss_fn=blind)
    before = fingerprint(model)
    hrp.initialize_lora_hrp_weights(model, spectrum)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".layers.0." not in name or "lora" not in name)


def test_an_unsupported_layer_is_named_with_its_kind_before_training():
    class OwnLora(nn.Module, LoraLayer):
        def __init__(self, base_layer, adapter_name, r, **_):
            super().__init__()
            LoraLayer.__init__(self, base_layer, in_features=8, out_features=8)
            self.r[adapter_name] = r

    config = LoraConfig(r=2, target_modules=["0"])
    config._register_custom_module({nn.GRUCell: OwnLora})
    with pytest.warns(UserWarning, match="Unsupported layer type"):
        model = get_peft_model(nn.Sequential(nn.GRUCell(8, 8)), config)
    with pytest.raises(ValueError, match=r"module '0' is of kind GRUCell \(PEFT's OwnLora\)"):
        preheat(model, dataloader=UnreadLoader())


def test_a_grouped_convolution_is_refused():
    model = nn.Sequential(nn.Conv1d(8, 8, 3, groups=4))
    with pytest.warns(UserWarning, match="groups > 1"):
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["0"]))
    with pytest.raises(ValueError, match=r"module '0' is a grouped Conv1d \(groups=4\)"):
        preheat(model, dataloader=UnreadLoader())


def test_a_config_that_no_longer_names_the_adapter_s_modules_is_refused(model):
    before = fingerprint(model)
    model.peft_config["default"].target_modules = {"q_proj"}
    with pytest.raises(ValueError, match="does not sit on the modules of 'default'"):
        preheat(model, dataloader=loader())
    assert_identical(before, fingerprint(model))


def spectrum_for(model, **changes) -> hrp.Spectrum:
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    return hrp.Spectrum({**spectrum, **changes})


def test_a_spectrum_that_lacks_modules_is_refused(model):
    other = hrp.Spectrum({"elsewhere": module_spectrum()})
    message = "lacks 14 of the adapter's 14 modules, such as .*it holds .'elsewhere'"
    with pytest.raises(ValueError, match=message):
        initialize(model, other)


def test_a_spectrum_of_other_shapes_is_refused(model):
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(ValueError, match=rf"'{name}': adapter \(32, 32\), spectrum \(20, 30\)"):
        initialize(model, spectrum_for(model, **{name: module_spectrum()}))


def test_a_spectrum_rank_below_the_adapter_is_refused(model):
    with pytest.raises(ValueError, match="at least the adapter's rank 4, got rank 2 for module"):
        initialize(model, spectrum_for(model).crop(2))


def test_a_refused_start_writes_nothing(model):
    before = fingerprint(model)
    name = "model.layers.1.self_attn.v_proj"
    with pytest.raises(ValueError, match="other shapes"):
        initialize(model, spectrum_for(model, **{name: module_spectrum()}))
    assert_identical(before, fingerprint(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "C"}, "`direction` must be one of"),
        ({"scale": 0.0}, "`scale` must be finite and > 0"),
        ({"direction": "AB", "scale": 2.0}, "`scale` must be 1 with `direction` 'AB'"),
        ({"adapter_name": "other"}, "`adapter_name` must be one of"),
    ],
)
def test_initialisation_arguments_are_checked(model, arguments, message):
    spectrum = hrp.Spectrum({"m": module_spectrum()})
    with pytest.raises(ValueError, match=message):
        unchecked(initialize)(model, spectrum, **arguments)


def test_a_trained_adapter_is_overwritten_only_when_forced(model, batch):
    spectrum = spectrum_for(model)
    initialize(model, spectrum, "A")
    initialize(model, spectrum, "B")  # still a no-op: nothing is lost
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**batch).loss.backward()
    optimizer.step()
    with pytest.raises(ValueError, match="pass `force=True`"):
        initialize(model, spectrum, "A")
    initialize(model, spectrum, "A", force=True)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changed_the_base_weights_is_refused(start):
    spectrum = spectrum_for(with_lora(tiny_llama()))
    model = with_lora(tiny_llama(), init_lora_weights=start)
    with pytest.raises(ValueError, match=f"which leave the base weights alone, got '{start}'"):
        initialize(model, spectrum)


def test_several_active_adapters_are_refused_as_preheating_would_train_without_the_others(model):
    model.add_adapter("two", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "two"])
    with pytest.raises(ValueError, match=r"only one adapter may be active .*\['default', 'two'\]"):
        hrp.preheat(model, CONFIG, dataloader=loader(), adapter_name="two")


def test_disabled_adapters_are_refused(model):
    with model.disable_adapter(), pytest.raises(ValueError, match="adapters must be enabled"):
        hrp.preheat(model, CONFIG, dataloader=loader())


def test_batches_that_are_no_mappings_need_a_loss_function(model):
    with pytest.raises(TypeError, match=r"must give mappings .* got batches of type tuple"):
        hrp.preheat(model, CONFIG, dataloader=[(torch.ones(1, 2), torch.ones(1))])


def test_apply_hrp_refuses_to_spend_the_model_it_is_to_start(model):
    with pytest.raises(ValueError, match="`spend_model` must be False with `apply_hrp`"):
        hrp.apply_hrp(model, CONFIG, dataloader=loader(), spend_model=True)


def test_apply_hrp_overwrites_a_trained_adapter_only_when_forced(model):
    hrp.apply_hrp(model, CONFIG, dataloader=loader())
    with pytest.raises(ValueError, match="pass `force=True`"):
        hrp.apply_hrp(model, CONFIG, dataloader=loader())
    hrp.apply_hrp(model, CONFIG, dataloader=loader(), force=True)


@pytest.mark.filterwarnings("ignore:.*lora_bias")
def test_a_trained_bias_is_a_trained_adapter_and_a_start_clears_it(batch):
    model = with_lora(tiny_llama(), lora_bias=True)
    base = model.eval()(**batch).logits
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    assert any(
        name.endswith("lora_B.bias") and value.any() for name, value in spectrum.kept.items()
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name and name.endswith("bias"):
            torch.nn.init.ones_(parameter)
    with pytest.raises(ValueError, match="already changes the model"):
        hrp.initialize_lora_hrp_weights(model, spectrum, "B")
    hrp.initialize_lora_hrp_weights(model, spectrum, "B", force=True)
    assert torch.equal(model.eval()(**batch).logits, base)


def test_a_reference_model_is_not_moved_in_silence(model, tmp_path):
    class DPOTrainer(Trainer):
        """TRL's copies the adapter's start for its reference."""

    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=8,
    )  # fmt: skip
    data = {"trainer_cls": DPOTrainer, "args": args, "train_dataset": token_rows(),
            "data_collator": collate}  # fmt: skip
    with pytest.warns(UserWarning, match="DPOTrainer takes the adapter's start"):
        hrp.apply_hrp(model, CONFIG, **data)
    hrp.apply_hrp(model, dataclasses.replace(CONFIG, direction="B"), **data, force=True)
