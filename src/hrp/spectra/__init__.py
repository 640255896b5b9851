"""Pure linear algebra of LoRA updates, and the folder that stores it; knows torch only."""
