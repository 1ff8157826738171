"""Components of language models for t5x_lite."""
