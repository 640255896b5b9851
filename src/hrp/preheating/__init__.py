"""Trains a temporary LoRA of a high rank, and reads what it has learned."""
