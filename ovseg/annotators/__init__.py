"""Parts that say which pixels of a sample are which entity: `Annotator`."""
