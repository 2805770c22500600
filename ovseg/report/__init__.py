"""The HTML report, made of sections."""
