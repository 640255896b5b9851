"""High-Rank Preheating (HRP) for LoRA."""
