"""What several tests share: tiny models, made-up records, ways to call the commands."""
