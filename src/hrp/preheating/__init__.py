"""Training a temporary LoRA of a high rank, and reading what it has learned."""
