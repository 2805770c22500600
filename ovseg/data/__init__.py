"""Prompts, streams of annotated samples, and the DataModule that feeds them."""
