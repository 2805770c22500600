"""The three LightningModules, thin."""
