"""Fine-tune a LoRA with the Trainer of transformers, from HRP's start: one line more.

python examples/hf_trainer.py
python examples/hf_trainer.py --model Qwen/Qwen3-0.6B
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

import hrp
from hrp.demo import BASE  # the folder of a model of a million parameters, part of the library
from hrp.demo.data import answer_collator, answer_dataset, read_problems

parser = argparse.ArgumentParser(description="HF's Trainer, started by HRP.")
parser.add_argument("--model", default=str(BASE), help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=100, help="steps of fine-tuning")
parser.add_argument("--output_dir", default="runs/hf_trainer")
options = parser.parse_args()
on_gpu = torch.cuda.is_available()

# The data: word problems, part of the library too. The loss counts the answers, not the questions.
tokenizer = AutoTokenizer.from_pretrained(options.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
rows = answer_dataset(tokenizer, read_problems()[:1000])

# The model: any causal language model, with a LoRA of PEFT's.
set_seed(0)
base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))

args = TrainingArguments(
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
trainer = Trainer(model, args, train_dataset=rows, data_collator=answer_collator(tokenizer))

# HRP: preheats with this trainer's data, loss and settings. Then train as always.
hrp.apply_hrp(trainer, hrp.HRPConfig(preheat_rank=64))
trainer.train()

trainer.save_model(options.output_dir)  # a plain PEFT adapter
print(f"adapter: {options.output_dir}")
