"""`hrp init` writes a plain PEFT adapter from a spectrum, without loading a base weight."""

from __future__ import annotations

import json
import resource
import runpy
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

import hrp
from helpers.commands import call
from helpers.faults import fault
from helpers.tiny import collate, tiny_llama, token_rows
from hrp.spectra.allocation import parameter_count, uniform_ranks


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_llama().save_pretrained(folder)
    return folder


def load(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base)


@pytest.fixture(scope="module")
def spectrum(base, tmp_path_factory):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load(base), config)
    preheating = hrp.HRPConfig(preheat_rank=16, preheat_steps=3, learning_rate=1e-2)
    found = hrp.preheat(model, preheating, dataloader=[collate(token_rows(8))])
    folder = tmp_path_factory.mktemp("spectrum") / "spectrum"
    found.save(folder)
    return folder


def run(spectrum, output, *more) -> int:
    lora = ("--lora_r", "4", "--lora_alpha", "8")
    return call("init", "--spectrum", spectrum, "--output_dir", output, *lora, *more)


@pytest.mark.parametrize("direction", ["A", "B", "AB"])
def test_the_adapter_is_the_one_that_the_library_makes(base, spectrum, tmp_path, direction):
    assert run(spectrum, tmp_path / "start", "--direction", direction) == 0
    loaded = PeftModel.from_pretrained(load(base), tmp_path / "start", is_trainable=True)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    made = get_peft_model(load(base), config)
    hrp.initialize_lora_hrp_weights(made, hrp.Spectrum.load(spectrum), direction)
    assert loaded.state_dict().keys() == made.state_dict().keys()
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_config_is_plain_and_names_the_base(base, spectrum, tmp_path):
    assert run(spectrum, tmp_path / "start") == 0
    config = json.loads((tmp_path / "start" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["base_model_name_or_path"] == str(base)
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")
    kinds = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(config["target_modules"]) == kinds


def test_the_config_has_no_key_that_an_older_peft_would_warn_of(spectrum, tmp_path):
    """Beside what every reader wants, only what differs from PEFT's defaults is written."""
    assert run(spectrum, tmp_path / "plain") == 0
    assert run(spectrum, tmp_path / "rslora", "--use_rslora") == 0
    plain, rslora = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("plain", "rslora")
    )
    assert plain.keys() == {
        *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout"),
        *("bias", "target_modules", "init_lora_weights", "inference_mode"),
    }
    assert rslora.keys() - plain.keys() == {"use_rslora"}
    loaded = PeftConfig.from_pretrained(tmp_path / "rslora")
    assert (loaded.use_rslora, loaded.rank_pattern, loaded.use_dora) == (True, {}, False)


def test_the_truncation_is_the_one_asked_for(base, spectrum, tmp_path):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    states = []
    for truncation in ("loss", "frobenius"):
        assert run(spectrum, tmp_path / truncation, "--truncation", truncation) == 0
        loaded = PeftModel.from_pretrained(load(base), tmp_path / truncation)
        made = get_peft_model(load(base), config)
        hrp.initialize_lora_hrp_weights(made, hrp.Spectrum.load(spectrum), truncation=truncation)
        states.append(loaded.state_dict())
        assert all(torch.equal(t, states[-1][name]) for name, t in made.state_dict().items())
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_start_is_a_no_op(base, spectrum, tmp_path, batch):
    assert run(spectrum, tmp_path / "start", "--direction", "B") == 0
    plain = load(base)(**batch).logits
    model = PeftModel.from_pretrained(load(base), tmp_path / "start")
    assert torch.equal(model(**batch).logits, plain)


def test_no_base_weight_is_read(base, spectrum, tmp_path):
    bare = tmp_path / "config-only"
    bare.mkdir()
    (bare / "config.json").write_text((base / "config.json").read_text())
    assert run(spectrum, tmp_path / "start", "--model_name_or_path", bare) == 0


def test_ranks_by_energy_load_in_peft_with_the_same_scaling(base, spectrum, tmp_path, capsys):
    assert run(spectrum, tmp_path / "start", "--allocation", "energy", "--direction", "AB") == 0
    assert "of the preheated energy" in capsys.readouterr().out
    model = PeftModel.from_pretrained(load(base), tmp_path / "start")
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert {layer.scaling["default"] for layer in layers} == {2.0}
    assert len({layer.r["default"] for layer in layers}) > 1
    found = hrp.Spectrum.load(spectrum)
    trained = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert trained <= parameter_count(found, uniform_ranks(found, 4))


def test_a_rank_budget_is_not_exceeded(base, spectrum, tmp_path):
    energy = ("--allocation", "energy", "--rank_budget", "2500")
    assert run(spectrum, tmp_path / "start", *energy) == 0
    model = PeftModel.from_pretrained(load(base), tmp_path / "start")
    sizes = [p.numel() for name, p in model.named_parameters() if "lora_" in name]
    assert 2400 < sum(sizes) <= 2500


def test_other_target_modules_take_their_part_of_the_spectrum(base, spectrum, tmp_path):
    assert run(spectrum, tmp_path / "start", "--lora_target_modules", "q_proj", "v_proj") == 0
    model = PeftModel.from_pretrained(load(base), tmp_path / "start")
    assert len([n for n, _ in model.named_parameters() if n.endswith("lora_A.default.weight")]) == 4


def test_all_linear_is_no_name(base, spectrum, tmp_path):
    assert run(spectrum, tmp_path / "start", "--lora_target_modules", "all-linear") == 0
    model = PeftModel.from_pretrained(load(base), tmp_path / "start")
    assert {name.rpartition(".")[2] for name in model.targeted_module_names} > {"q_proj", "up_proj"}


def test_the_card_tells_settings_cost_versions_and_how_to_load(
    base, spectrum, tmp_path, monkeypatch
):
    assert run(spectrum, tmp_path / "start", "--direction", "B") == 0
    text = (tmp_path / "start" / "README.md").read_text()
    for part in ("library_name: peft", "| direction | `B` |", "| preheat_rank | `16` |"):
        assert part in text
    assert "| optimizer steps | `3` |" in text
    assert f"| torch | `{torch.__version__}` |" in text
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 2
    from transformers import AutoModelForCausalLM

    names = {"AutoModelForCausalLM": AutoModelForCausalLM, "PeftModel": PeftModel}
    (tmp_path / "loading.py").write_text(code)
    (tmp_path / base.name).symlink_to(base)  # the card has no absolute path
    monkeypatch.chdir(tmp_path)
    result = runpy.run_path(str(tmp_path / "loading.py"), init_globals=names)
    assert isinstance(result["model"], PeftModel)


def test_a_name_cannot_break_out_of_the_card():
    from hrp.cli.modelcard import card

    text = card("sft", "a", {"base_model_name_or_path": "x`<script>|\n# y"}, {}, {})
    assert "\n# y" not in text
    assert "# LoRA adapter of `x'<script>\\| # y`" in text


def test_a_rate_that_is_no_number_is_shown_as_it_is():
    from hrp.cli.modelcard import card

    provenance = {"config": {"learning_rate": "fast"}}
    assert "| preheat_learning_rate | `fast` |" in card("init", "a", {}, provenance, {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_r", "0"], "`lora_r` must be an integer >= 1, got 0"),
        (["--lora_r", "40"], "must have at least the adapter's rank 32, got rank 16"),
        (["--direction", "AB", "--scale", "2"], "`scale` must be 1 with `direction` 'AB'"),
        (["--rank_budget", "99"], "`--rank_budget` goes with `--allocation energy`"),
        (
            ["--allocation", "energy", "--rank_budget", "99"],
            "`rank_budget` must be at least 928 parameters",
        ),
        (["--lora_dropout", "2"], "`lora_dropout` must be in [0, 1), got 2.0"),
        (["--lora_target_modules", "q_proj", "v_prj"], "got 'v_prj'; did you mean v_proj?"),
        (["--lora_task_type", "SEQ_2_SEQ_LM"], "is for another kind of model than"),
        (["--model_name_or_path", "./nowhere"], "`--model_name_or_path` './nowhere' is no folder"),
        (["--lora_target_modules", "embed_tokens"], "`spectrum` lacks 1 of the adapter's"),
    ],
)
def test_bad_flags_are_refused_and_write_nothing(spectrum, tmp_path, capsys, flags, message):
    assert run(spectrum, tmp_path / "start", *flags) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_spectrum_of_another_model_is_refused(spectrum, tmp_path, capsys):
    other = tmp_path / "other"
    tiny_llama(hidden_size=16).config.save_pretrained(other)
    assert run(spectrum, tmp_path / "start", "--model_name_or_path", other) == 2
    assert "`spectrum` has other shapes (d_out, d_in)" in capsys.readouterr().err
    assert not (tmp_path / "start").exists()


def test_a_folder_that_is_no_spectrum_is_refused(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "start") == 2
    assert "is no spectrum folder" in capsys.readouterr().err


def test_an_adapter_is_replaced_only_when_told(spectrum, tmp_path, capsys):
    assert run(spectrum, tmp_path / "start") == 0
    before = (tmp_path / "start" / "adapter_model.safetensors").read_bytes()
    assert run(spectrum, tmp_path / "start", "--direction", "B") == 2
    assert "holds an adapter; pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "start" / "adapter_model.safetensors").read_bytes() == before
    assert run(spectrum, tmp_path / "start", "--direction", "B", "--overwrite") == 0
    assert (tmp_path / "start" / "adapter_model.safetensors").read_bytes() != before


def test_a_folder_with_other_files_is_never_replaced(spectrum, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    assert run(spectrum, tmp_path / "home", "--overwrite") == 2
    assert "exists and is no adapter" in capsys.readouterr().err
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_an_output_under_a_file_is_refused(spectrum, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(spectrum, tmp_path / "file" / "start") == 2
    assert "hrp init: " in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_behind(spectrum, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = run(spectrum, tmp_path / "start")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert "File too large" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def counted(folder) -> int:
    """Parameters in an adapter folder."""
    from safetensors.torch import load_file

    return sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())


@pytest.mark.parametrize("allocation", ["uniform", "energy"])
def test_the_note_counts_what_the_adapter_has(spectrum, tmp_path, capsys, allocation):
    targets = ("--lora_target_modules", "q_proj", "v_proj")
    assert run(spectrum, tmp_path / "start", "--allocation", allocation, *targets) == 0
    count = counted(tmp_path / "start")
    assert f"on 4 modules, {count:,} parameters" in capsys.readouterr().out


def test_the_budget_of_ranks_by_energy_is_that_of_the_target_modules(spectrum, tmp_path):
    targets = ("--lora_target_modules", "q_proj", "v_proj")
    assert run(spectrum, tmp_path / "uniform", *targets) == 0
    assert run(spectrum, tmp_path / "energy", "--allocation", "energy", *targets) == 0
    assert counted(tmp_path / "energy") <= counted(tmp_path / "uniform")


def test_an_output_that_holds_the_spectrum_is_refused(spectrum, tmp_path, capsys):
    shutil.copytree(spectrum, tmp_path / "run" / "spectrum")
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "spectrum")
    for given in (tmp_path / "run" / "spectrum", tmp_path / "link"):
        assert run(given, tmp_path / "run", "--overwrite") == 2
        assert "`--output_dir` must not hold the spectrum" in capsys.readouterr().err
    assert hrp.Spectrum.load(tmp_path / "run" / "spectrum")


def test_an_adapter_with_anything_beside_it_is_not_replaced(spectrum, tmp_path, capsys):
    assert run(spectrum, tmp_path / "start") == 0
    (tmp_path / "start" / "checkpoint-5").mkdir()
    assert run(spectrum, tmp_path / "start", "--overwrite") == 2
    assert "holds 'checkpoint-5' besides what is replaced" in capsys.readouterr().err
    assert (tmp_path / "start" / "checkpoint-5").is_dir()


@fault(
    "Whose file is it",
    "an adapter that was trained after `hrp init`",
    command="init",
    outcome="`--overwrite` is refused by name",
)
@pytest.mark.parametrize("change", ["weights", "record", "another program's"])
def test_an_adapter_that_has_been_trained_since_is_not_replaced(spectrum, tmp_path, capsys, change):
    start = tmp_path / "start"
    assert run(spectrum, start) == 0
    if change == "weights":
        (start / "adapter_model.safetensors").write_bytes(b"trained")
    elif change == "record":
        (start / "hrp.json").write_text("[]")
    else:
        (start / "hrp.json").unlink()
    before = {path.name: path.read_bytes() for path in start.iterdir()}
    assert run(spectrum, start, "--overwrite") == 2
    assert "which hrp did not write, or not as it is now" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in start.iterdir()} == before


def edited_base(base, folder, **changes):
    """Copy the base model's config with changes; `hrp init` reads no weights."""
    folder.mkdir()
    config = json.loads((base / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@fault(
    "Hostile or damaged input",
    "a base config of width 1e9",
    command="init",
    outcome="refused before it takes memory",
)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 10**9, "head_dim": 8}, "`spectrum` has other shapes (d_out, d_in)"),
        ({"intermediate_size": 10**9}, "`spectrum` has other shapes (d_out, d_in)"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` of"),
    ],
)
def test_a_base_of_absurd_size_is_refused_before_it_takes_memory(
    base, spectrum, tmp_path, capsys, changes, message
):
    huge = edited_base(base, tmp_path / "huge", **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert run(spectrum, tmp_path / "start", "--model_name_or_path", huge) == 2
    assert message in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB
    assert not (tmp_path / "start").exists()


def test_no_key_of_a_spectrum_is_live_in_the_card_and_no_path_of_the_user_s_is_in_it():
    from hrp.cli.modelcard import card

    provenance = {"cost": {"<img src=x onerror=alert(1)>": 1, "[a](http://evil)": "`<b>`"}}
    base, data = "/home/me/secret/base", "/home/me/secret/rows.jsonl"
    lora = {"base_model_name_or_path": base}
    text = card("sft", "/home/me/secret/out", lora, provenance, {}, data)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "\\[a\\](http://evil)" in text
    assert "secret" not in text
    assert "from_pretrained(base, 'out')" in text
    assert "`rows.jsonl`" in text
    assert "org/model" in card("sft", "out", {"base_model_name_or_path": "org/model"}, {}, {})


@fault(
    "Hostile or damaged input",
    "terminal escapes in a module's name",
    command="inspect",
    outcome="spelt out",
)
def test_terminal_escapes_in_a_spectrum_are_spelt_out(tmp_path, capsys):
    from helpers.spectra_made import made_spectrum

    name = "a\x1b[2J\x07\u202eb"
    hostile = made_spectrum(layers=1, prefix=name, **{name: "x"})
    hostile.save(tmp_path / "spectrum")
    for flags in ([], ["--json"]):
        assert call("inspect", tmp_path / "spectrum", *flags) == 0
        out = capsys.readouterr().out
        assert "\\x1b[2J" in out or "\\u001b[2J" in out
        assert not set(out) & {"\x1b", "\x07", "\u202e"}
