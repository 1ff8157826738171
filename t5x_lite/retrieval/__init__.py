"""Dense retrieval with a trained encoder: indexes of passages, search, recall, and passages before prompts."""
