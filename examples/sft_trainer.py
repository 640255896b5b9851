"""Fine-tune a LoRA with TRL's SFTTrainer, from HRP's start: one line more.

python examples/sft_trainer.py
python examples/sft_trainer.py --model Qwen/Qwen3-0.6B
"""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import hrp
from hrp.demo import BASE  # the folder of a model of a million parameters, part of the library
from hrp.demo.data import read_problems

parser = argparse.ArgumentParser(description="TRL's SFTTrainer, started by HRP.")
parser.add_argument("--model", default=str(BASE), help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=100, help="steps of fine-tuning")
parser.add_argument("--output_dir", default="runs/sft_trainer")
options = parser.parse_args()
on_gpu = torch.cuda.is_available()

# The data: columns `prompt` and `completion`, as TRL knows them. The loss counts completions.
rows = [
    {"prompt": problem["question"] + "\n", "completion": problem["answer"]}
    for problem in read_problems()[:1000]
]

args = SFTConfig(
    output_dir=options.output_dir,
    max_steps=options.steps,
    per_device_train_batch_size=8,
    learning_rate=1e-2 if options.model == str(BASE) else 2e-4,  # so small a model wants a high one
    lr_scheduler_type="cosine",
    logging_steps=10,
    save_strategy="no",
    report_to="none",
    bf16=on_gpu,
    use_cpu=not on_gpu,
)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
    args=args,
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(options.model),
    peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
)

# HRP: preheats with this trainer's data, loss and settings. Then train as always.
hrp.apply_hrp(trainer, hrp.HRPConfig(preheat_rank=64))
trainer.train()

trainer.save_model(options.output_dir)  # a plain PEFT adapter
print(f"adapter: {options.output_dir}")
