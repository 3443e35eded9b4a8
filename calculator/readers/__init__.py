"""Other people's files -> ModelSpec, one file per file format."""
