"""Does the linear algebra of LoRA updates and stores it in a folder; knows torch only."""
