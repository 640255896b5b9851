import dataclasses
import json
import warnings

import pytest
from peft import PEFT_TYPE_TO_CONFIG_MAPPING

from helpers.synthetic import full_record
from hrp_lab.bench.arms import ARMS
from hrp_lab.bench.costs import Costs
from hrp_lab.bench.export import export_records, peft_result
from hrp_lab.bench.record import Record, RunSpec

# What PEFT's own results of MetaMathQA hold, and what its result pages read from them.
STRUCTURE = {
    "run_info": {
        "created_at", "total_time", "experiment_name", "peft_branch", "train_config",
        "peft_config", "error_msg",
    },
    "train_info": {
        "accelerator_memory_reserved_avg", "accelerator_memory_max",
        "accelerator_memory_reserved_99th", "train_time", "file_size", "num_trainable_params",
        "num_total_params", "status", "metrics",
    },
    "meta_info": {"model_info", "dataset_info", "package_info", "system_info", "pytorch_info"},
}  # fmt: skip
LAST_METRICS = {"step", "test accuracy", "train loss", "train samples", "train total tokens"}
PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
SETTINGS = {"batch_size": 32, "lora": {"r": 4}}


def test_the_structure_is_that_of_peft_s_results():
    result = peft_result(full_record(**SETTINGS))
    assert {part: set(fields) for part, fields in result.items()} == STRUCTURE
    assert set(result["train_info"]["metrics"][-1]) >= LAST_METRICS
    assert {f"{name}-version" for name in PACKAGES} <= set(result["meta_info"]["package_info"])
    assert {"sha", "created_at"} == set(result["meta_info"]["model_info"])


def test_the_values_are_the_record_s():
    record = full_record(**SETTINGS)
    result = peft_result(record)
    run, train, last = result["run_info"], result["train_info"], result["train_info"]["metrics"][-1]
    assert run["train_config"]["model_id"] == "base-lm-30m"
    assert run["train_config"]["optimizer_kwargs"]["lr"] == 1e-3
    assert run["peft_config"] == {"peft_type": "LORA", "r": 4, "init_lora_weights": True}
    assert run["train_config"]["arm"] == "hrp-ab"
    assert last["test accuracy"] == record.metrics["exact_match"]
    assert last["train samples"] == 420 * 32
    assert last["train total tokens"] == record.costs.tokens
    assert train["status"] == "success"
    assert train["metrics"][0] == {"step": 5, "train loss": record.losses[0][1]}


def test_the_adapter_s_settings_are_those_of_the_run():
    settings = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    run = RunSpec("e", "hrp-b", "t", 0, 1e-3, {"lora": settings})
    result = peft_result(Record(run, "ok", metrics={"eval_loss": 1.0}))
    assert (
        result["run_info"]["peft_config"]
        == {"peft_type": "LORA", "init_lora_weights": True} | settings
    )


def exported(arm, **config):
    run = RunSpec("e", arm, "t", 0, 1e-3, {"lora": {"r": 4, "lora_alpha": 8}} | config)
    costs = Costs(finetune_steps=450)
    return peft_result(Record(run, "ok", metrics={"eval_loss": 1.0}, costs=costs))["run_info"]


@pytest.mark.parametrize("arm", [name for name in ARMS if name != "full"])
def test_the_peft_config_of_every_arm_is_one_that_peft_takes(arm):
    config = exported(arm)["peft_config"]
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EVA without its own config
        made = kind(**{name: value for name, value in config.items() if name != "peft_type"})
    assert made.peft_type == config["peft_type"]
    assert made.r == 4 or arm == "adalora"


def test_variants_are_exported_as_what_they_are_and_not_as_starts():
    assert exported("dora")["peft_config"]["use_dora"] is True
    for arm in ("dora-hrp-ab", "dora-hrp-ab-reset"):
        assert exported(arm)["peft_config"]["use_dora"] is True
    for arm in ("rslora", "rslora-hrp-ab"):
        assert exported(arm)["peft_config"]["use_rslora"] is True
    assert exported("pissa")["peft_config"]["init_lora_weights"] == "pissa"
    for arm in ("lora", "dora", "lora+", "hrp-ab", "oracle-b"):
        assert exported(arm)["peft_config"]["init_lora_weights"] is True
    adalora = exported("adalora", adalora={"initial_share": 0.2})["peft_config"]
    assert adalora["peft_type"] == "ADALORA"
    assert (adalora["init_r"], adalora["target_r"]) == (6, 4)
    assert (adalora["tinit"], adalora["tfinal"], adalora["total_step"]) == (90, 135, 450)


def test_what_peft_does_not_know_of_a_start_stands_in_the_train_config():
    settings = {"preheat_rank": 64, "preheat_steps": 20}
    train = exported("hrp-ab", hrp=settings)["train_config"]
    assert (train["arm"], train["hrp"]) == ("hrp-ab", settings)


def test_a_number_of_parameters_that_no_record_holds_is_null():
    run = RunSpec("e", "lora", "t", 0, 1e-3, {"lora": {"r": 4}})
    train = peft_result(Record(run, "ok", metrics={"eval_loss": 1.0}))["train_info"]
    assert train["num_trainable_params"] is train["num_total_params"] is None


def test_what_the_result_pages_turn_into_integers_is_always_a_number():
    bare = Record(RunSpec("e", "lora", "t", 0, 1e-3), "ok", metrics={"eval_loss": 1.0})
    result = peft_result(bare)
    train, last = result["train_info"], result["train_info"]["metrics"][-1]
    integers = [value for name, value in train.items() if name.startswith("accelerator")]
    integers += [train["file_size"], last["train samples"], last["train total tokens"]]
    assert all(isinstance(value, int) for value in integers)
    assert last["test accuracy"] is None


def test_full_fine_tuning_has_no_peft_config():
    assert peft_result(full_record(arm="full"))["run_info"]["peft_config"] is None


def test_files_are_named_safely_and_one_a_run(tmp_path):
    records = [full_record(arm="../../lora <b>", seed=seed) for seed in (0, 1)]
    paths = export_records(records, tmp_path / "out")
    assert len(set(paths)) == 2
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    assert json.loads(paths[0].read_text()) == peft_result(records[0])


def test_failures_are_exported_and_inapplicable_runs_are_not(tmp_path):
    failed = dataclasses.replace(full_record(), status="failed", reason="out of memory", metrics={})
    skipped = dataclasses.replace(full_record(seed=1), status="not-applicable", reason="no layers")
    (path,) = export_records([failed, skipped], tmp_path)
    result = json.loads(path.read_text())
    assert result["train_info"]["status"] == "failed"
    assert result["run_info"]["error_msg"] == "out of memory"
    with pytest.raises(ValueError, match="`record` must have run"):
        peft_result(skipped)


def test_a_loss_that_diverged_is_null():
    diverged = dataclasses.replace(full_record(), losses=((1, 2.0), (2, float("nan"))))
    metrics = peft_result(diverged)["train_info"]["metrics"]
    assert metrics[1]["train loss"] is None
    assert metrics[-1]["train loss"] is None
