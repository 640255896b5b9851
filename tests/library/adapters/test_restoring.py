"""A model and the generators are put back, whatever interrupts, and when."""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hrp
from helpers.faults import fault
from helpers.tiny import assert_identical, fingerprint, loader, tiny_llama, with_lora
from hrp.adapters import interrupts, restoring
from hrp.adapters.interrupts import interrupts_allowed, interrupts_held
from hrp.adapters.restoring import restored_globals, restored_model

CONFIG = hrp.HRPConfig(preheat_rank=16, preheat_steps=3, learning_rate=1e-2)


def resize_by_data(model):
    """As `resize_token_embeddings` does where the embedding is kept: through ``.data``."""
    weight = model.get_input_embeddings().weight
    weight.data = torch.cat([weight.data, weight.data[:3]])
    model.get_base_model().model.embed_tokens.num_embeddings += 3
    model.get_base_model().resize_token_embeddings(64)


def other_dtype(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def other_memory(model):
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter.data)


@pytest.mark.parametrize("change", [resize_by_data, other_dtype, other_memory])
def test_parameters_get_their_own_memory_back(model, change):
    before, structure, memory = fingerprint(model), str(model), parameters(model)
    with restored_model(model):
        change(model)
        assert str(model) != structure or parameters(model) != memory
    assert_identical(before, fingerprint(model))
    assert (str(model), parameters(model)) == (structure, memory)


def parameters(model):
    return [(name, p.data_ptr(), p.dtype, p.shape) for name, p in model.named_parameters()]


@fault(
    "Kills and interrupts",
    "a chat template that resizes the embedding",
    command="`hrp.preheat`",
    outcome="the embedding has its own size again",
)
def test_a_chat_template_that_resizes_the_embedding_leaves_no_trace(tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from helpers.built_trainers import SETTINGS, tokenizer

    source = tokenizer()
    source.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>", "<|c|>"]})
    source.chat_template = "{% for m in messages %}<|a|>{{ m['content'] }}{% endfor %}"
    source.save_pretrained(tmp_path / "template")
    own = tokenizer()
    model = with_lora(tiny_llama(vocab_size=len(own)))
    before, structure = fingerprint(model), str(model)
    rows = [{"messages": [{"role": "user", "content": "one two three"}]} for _ in range(16)]
    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        chat_template_path=str(tmp_path / "template"),
        **SETTINGS | {"gradient_checkpointing": False},
    )
    hrp.preheat(
        model,
        CONFIG,
        trainer_cls=SFTTrainer,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=own,
    )
    assert str(model) == structure
    assert_identical(before, fingerprint(model))


def interrupted(
    model, training_line: int, restoring_step: int | None, unit: str
) -> tuple[bool, int]:
    """Preheat with Ctrl-C after so many lines of training, and another in the restoring.

    Returns whether `KeyboardInterrupt` came out, and how many steps the restoring had, lines or
    opcodes, with what holds interrupts back meanwhile.
    """
    counts = {"training": 0, "restoring": 0}

    def loss_fn(model, batch):
        loss = model(**batch).loss
        for _ in range(10):
            counts["training"] += 1
            if counts["training"] == training_line:
                signal.raise_signal(signal.SIGINT)
        return loss

    def steps(frame, event, argument):
        if event == unit:
            counts["restoring"] += 1
            if counts["restoring"] == restoring_step:
                frame.f_trace_opcodes = False
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return steps

    def calls(frame, event, argument):
        interrupted = counts["training"] >= training_line or training_line > 30
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        ours = file == interrupts.__file__ or (file == restoring.__file__ and "restore" in name)
        if not (interrupted and ours):
            return None
        frame.f_trace_opcodes = unit == "opcode"
        return steps

    before = sys.gettrace()
    sys.settrace(before if restoring_step is None else calls)
    try:
        hrp.preheat(model, CONFIG, dataloader=loader(), loss_fn=loss_fn)
    except KeyboardInterrupt:
        return True, counts["restoring"]
    finally:
        sys.settrace(before)
    return False, counts["restoring"]


def check_interrupts(moments: int, unit: str) -> None:
    model = with_lora(tiny_llama())
    before, structure = fingerprint(model), str(model)
    grads = [parameter.requires_grad for parameter in model.parameters()]
    came, length = interrupted(model, 1, 0, unit)  # counts them
    assert came
    assert length > (1000 if unit == "line" else 10_000)
    generator = random.Random(0)
    for moment in range(moments):
        # Half of them come twice; of those some only while restoring, after training has ended.
        training = generator.randint(1, 40)
        restoring_step = generator.randint(1, length) if moment % 2 else None
        if moment % 10 == 1:  # where the holding back ends
            restoring_step = length - generator.randint(0, length // 100)
        came, _ = interrupted(model, training, restoring_step, unit)
        assert came == (training <= 30 or restoring_step is not None)
        assert str(model) == structure
        assert list(model.peft_config) == ["default"]
        assert [parameter.requires_grad for parameter in model.parameters()] == grads
        assert_identical(before, fingerprint(model))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ten_interrupts_of_which_five_fall_in_the_restoring_leave_the_model_as_it_was():
    check_interrupts(10, "line")


@fault(
    "Kills and interrupts",
    "a second Ctrl-C while the model is put back",
    command="`hrp.preheat`",
    outcome="it waits; the model is bit for bit as before",
)
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_interrupts_of_which_fifty_fall_in_the_restoring_leave_the_model_as_it_was():
    check_interrupts(100, "opcode")


def test_an_interrupt_that_had_to_wait_comes_on_exit():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("put back")
    assert done == ["put back"]


def test_an_interrupt_that_waited_comes_where_the_work_begins():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("prepared")
        with interrupts_allowed():
            done.append("worked")
    assert done == ["prepared"]


def test_holding_within_holding_waits_for_its_own_work_alone():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_held(), interrupts_allowed():  # noqa: PT012
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner"]


def test_a_handler_of_the_user_s_own_is_called_and_kept():
    calls = []
    own = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            assert calls == []
            with interrupts_allowed():
                assert calls == [signal.SIGINT]
        assert len(calls) == 1
        signal.raise_signal(signal.SIGINT)
        assert len(calls) == 2
    finally:
        signal.signal(signal.SIGINT, own)


def test_another_thread_leaves_the_handler_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with interrupts_held(), interrupts_allowed():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


class Device:
    """Stands for `torch.cuda`, `torch.xpu` or `torch.mps`: counts, starts, and has generators."""

    def __init__(self, count):
        self.states = [torch.full((2,), index) for index in range(count)]
        self.started = False

    def init(self):
        self.started = True

    def device_count(self):
        return len(self.states)

    def get_rng_state(self, device=0):
        return self.states[device].clone()

    def set_rng_state(self, state, device=0):
        self.states[device] = state


@pytest.mark.parametrize(("kind", "count"), [("cuda", 2), ("xpu", 3), ("mps", 1)])
def test_the_generators_of_every_kind_of_device_are_put_back(monkeypatch, kind, count):
    device = Device(count)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type=kind)
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)
    with restored_globals():
        assert device.started == (kind != "mps")  # else a seed set before would be lost
        device.states = [torch.zeros(2)] * count
    assert [state.tolist() for state in device.states] == [[i, i] for i in range(count)]


@pytest.mark.gpu
def test_a_seed_set_before_cuda_starts_is_not_lost():
    import subprocess

    script = (
        "import torch\nfrom hrp.adapters.restoring import restored_globals\n"
        "torch.cuda.manual_seed_all(7)\n"
        "with restored_globals():\n    torch.cuda.manual_seed_all(1)\n"
        "print(torch.rand(1, device='cuda').item())\n"
    )
    plain = script.replace("with restored_globals():\n    torch.cuda.manual_seed_all(1)\n", "")
    printed = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
        for text in (script, plain)
    ]
    assert printed[0].stdout == printed[1].stdout


def test_a_module_s_gradient_is_its_own_again():
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    grad = layer.weight.grad
    with restored_model(layer):
        layer.weight.grad = None
        layer.weight.data = torch.zeros(3, 2)
        gc.collect()
    assert layer.weight.grad is grad
    assert layer.weight.shape == (2, 2)
