"""Interactions → sequences → rows with frozen candidates → prompts → batches."""
