"""A run's rows as files: Parquet, Arrow, JSON Lines, CSV, or a data set as Hugging Face reads it."""
