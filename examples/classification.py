"""Fine-tune a classifier with LoRA, from HRP's start.

python examples/classification.py
python examples/classification.py --model FacebookAI/roberta-base
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)  # fmt: skip

import hrp
from hrp.demo import BASE  # the folder of a model of a million parameters, part of the library
from hrp.demo.data import read_problems

parser = argparse.ArgumentParser(description="A classifier, started by HRP.")
parser.add_argument("--model", default=str(BASE), help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=100, help="steps of fine-tuning")
parser.add_argument("--output_dir", default="runs/classification")
options = parser.parse_args()
on_gpu = torch.cuda.is_available()

# The data: how many equations does a word problem need? One, two or three: labels 0, 1, 2.
tokenizer = AutoTokenizer.from_pretrained(options.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
rows = [
    {**tokenizer(problem["question"]), "label": problem["answer"].count("\n") - 1}
    for problem in read_problems()[:1000]
]

# The model: a new, random head on top. PEFT trains the head along, as `modules_to_save`.
set_seed(0)
base = AutoModelForSequenceClassification.from_pretrained(
    options.model, num_labels=3, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
)
lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules="all-linear")
args = TrainingArguments(
    output_dir=options.output_dir, max_steps=options.steps, per_device_train_batch_size=8,
    learning_rate=5e-3 if options.model == str(BASE) else 4e-4, lr_scheduler_type="cosine",
    logging_steps=10, save_strategy="no", report_to="none", bf16=on_gpu, use_cpu=not on_gpu,
)  # fmt: skip
collator = DataCollatorWithPadding(tokenizer)
trainer = Trainer(get_peft_model(base, lora), args, train_dataset=rows, data_collator=collator)

# By default a classifier is preheated for a twentieth of the steps only, because long preheating
# made classifiers worse where we measured it. The start keeps the preheated head.
hrp.apply_hrp(trainer, hrp.HRPConfig(preheat_rank=64))
trainer.train()

trainer.save_model(options.output_dir)  # a plain PEFT adapter, with the head
print(f"adapter: {options.output_dir}")
