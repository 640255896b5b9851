"""Compares starts of LoRA: arms, tasks, runs, records, and the statistics that judge them."""
