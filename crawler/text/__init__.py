"""A response's bytes as what is stored of them: JSON, text by its charset, or content that is neither."""
