"""Fine-tune a DoRA on a base model in 4 bits, from HRP's start. It needs a GPU and bitsandbytes.

python examples/dora_4bit.py
python examples/dora_4bit.py --model Qwen/Qwen3-8B
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)  # fmt: skip

import hrp
from hrp.demo import BASE  # the folder of a model of a million parameters, part of the library
from hrp.demo.data import answer_collator, answer_dataset, read_problems

parser = argparse.ArgumentParser(description="DoRA on a 4-bit base, started by HRP.")
parser.add_argument("--model", default=str(BASE), help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=100, help="steps of fine-tuning")
parser.add_argument("--output_dir", default="runs/dora_4bit")
parser.add_argument("--unquantised", action="store_true", help="a base in float32, on the CPU too")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
rows = answer_dataset(tokenizer, read_problems()[:1000])

# HRP reads and writes the adapter alone, so the base may be quantised as you like.
four_bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
)
loading = {"dtype": torch.float32} if options.unquantised else {"quantization_config": four_bits}
set_seed(0)
base = AutoModelForCausalLM.from_pretrained(options.model, **loading)

# DoRA: LoRA with a trained length for each row of the weights, `lora_magnitude_vector`.
lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True)
args = TrainingArguments(
    output_dir=options.output_dir, max_steps=options.steps, per_device_train_batch_size=8,
    learning_rate=6e-3 if options.model == str(BASE) else 2e-4, lr_scheduler_type="cosine",
    logging_steps=10, save_strategy="no", report_to="none",
    bf16=not options.unquantised, use_cpu=options.unquantised,
)  # fmt: skip
trainer = Trainer(
    get_peft_model(base, lora), args, train_dataset=rows, data_collator=answer_collator(tokenizer)
)

# Preheating trains a DoRA too, and the start keeps the magnitudes that it has found.
hrp.apply_hrp(trainer, hrp.HRPConfig(preheat_rank=64))
trainer.train()
trainer.save_model(options.output_dir)  # a plain PEFT adapter
print(f"adapter: {options.output_dir}")
