"""Pretrain, resume, adapt and evaluate Transformer language models in JAX, from a laptop to a pod."""
