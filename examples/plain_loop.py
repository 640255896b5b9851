"""Fine-tune a LoRA in a PyTorch loop of your own, from HRP's start.

python examples/plain_loop.py
python examples/plain_loop.py --model Qwen/Qwen3-0.6B
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import hrp
from hrp.demo import BASE  # the folder of a model of a million parameters, part of the library
from hrp.demo.data import answer_collator, answer_dataset, read_problems

parser = argparse.ArgumentParser(description="A loop of your own, started by HRP.")
parser.add_argument("--model", default=str(BASE), help="a folder, or a name on the hub")
parser.add_argument("--steps", type=int, default=100, help="steps of fine-tuning")
parser.add_argument("--output_dir", default="runs/plain_loop")
options = parser.parse_args()
learning_rate = 1e-2 if options.model == str(BASE) else 2e-4  # so small a model wants a high one

# The data: word problems, part of the library too. The loss counts the answers, not the questions.
tokenizer = AutoTokenizer.from_pretrained(options.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
rows = answer_dataset(tokenizer, read_problems()[:1000])
dataloader = DataLoader(rows, 8, shuffle=True, collate_fn=answer_collator(tokenizer))

# The model: any causal language model, with a LoRA of PEFT's. Nothing here is HRP's.
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device)
model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))

# HRP: train a LoRA of rank 64 for a fifth of the steps, and start ours from the best of it.
config = hrp.HRPConfig(preheat_rank=64)
hrp.apply_hrp(
    model, config, dataloader=dataloader, total_steps=options.steps, learning_rate=learning_rate
)

# Your own loop, as it always was.
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
model.train()
batches = (batch for _ in range(options.steps) for batch in dataloader)  # enough of them
for step, batch in zip(range(1, options.steps + 1), batches, strict=False):
    loss = model(**batch.to(device)).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step:4d}  loss {loss.item():.4f}")

model.save_pretrained(options.output_dir)  # a plain PEFT adapter
print(f"adapter: {options.output_dir}")
