"""Shipped configs have the hyperparameters that their papers print: rates, batches, dropout and bases of positions."""

from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.models.positions.rotary import Rotary
from t5x_lite.train.optimizers.adamw import AdamW
from t5x_lite.train.schedules.cosine import Cosine
from t5x_lite.train.schedules.linear import Linear

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

GPT3 = {
    "125m": (12, 768, 6.0e-4, 0.5e6),
    "350m": (24, 1024, 3.0e-4, 0.5e6),
    "760m": (24, 1536, 2.5e-4, 0.5e6),
    "1.3b": (24, 2048, 2.0e-4, 1e6),
    "2.7b": (32, 2560, 1.6e-4, 1e6),
    "6.7b": (32, 4096, 1.2e-4, 2e6),
    "13b": (40, 5120, 1.0e-4, 2e6),
    "175b": (96, 12288, 0.6e-4, 3.2e6),
}
"""Brown et al. 2020, Table 2.1: layers, width, learning rate, and tokens of a batch, which are rounded there."""

LLAMA = {
    # Touvron et al. 2023a, Table 2.
    "llama/7b": (3.0e-4, 1e4),
    "llama/13b": (3.0e-4, 1e4),
    "llama/33b": (1.5e-4, 1e4),
    "llama/65b": (1.5e-4, 1e4),
    # Touvron et al. 2023b, Table 1.
    "llama2/7b": (3.0e-4, 1e4),
    "llama2/13b": (3.0e-4, 1e4),
    "llama2/70b": (1.5e-4, 1e4),
    # Grattafiori et al. 2024, Table 3.
    "llama3/8b": (3.0e-4, 5e5),
    "llama3/70b": (1.5e-4, 5e5),
    "llama3/405b": (8.0e-5, 5e5),
}
"""Learning rate, and the base of the wavelengths of positions: Su et al. 2021, §3.2.2, and Llama 3's Table 3."""


def load(name: str) -> RunConfig:
    return configuration.load(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("name", GPT3)
def test_the_recipes_of_gpt3_are_those_of_its_table(name: str) -> None:
    """Appendix B: a warm-up of 375M tokens, a decay to a tenth over 260B, Adam's 0.9 and 0.95, decay 0.1, norm 1."""
    layers, width, learning_rate, tokens = GPT3[name]
    config = load(f"gpt3/{name}")
    assert (config.model.layers, config.model.embed) == (layers, width)
    batch_tokens = config.train.batch_size * config.train.seq_len
    assert batch_tokens == pytest.approx(tokens, rel=0.05)
    assert config.train.steps * batch_tokens == pytest.approx(300e9, rel=0.001)
    optimizer = config.optimizer
    assert optimizer.learning_rate == learning_rate
    assert optimizer.warmup_steps * batch_tokens == pytest.approx(375e6, rel=0.005)
    assert isinstance(optimizer.schedule, Cosine)
    assert optimizer.schedule.final == 0.1
    assert optimizer.schedule.decay_end * config.train.steps * batch_tokens == pytest.approx(260e9, rel=0.001)
    assert isinstance(optimizer.method, AdamW)
    assert (optimizer.method.b1, optimizer.method.b2, optimizer.method.epsilon) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.1, 1.0)


@pytest.mark.parametrize("name", LLAMA)
def test_the_rates_and_bases_of_llama_are_those_of_the_papers(name: str) -> None:
    learning_rate, theta = LLAMA[name]
    config = load(name)
    assert config.optimizer.learning_rate == learning_rate
    positions = config.model.positions
    assert isinstance(positions, Rotary)
    assert positions.theta == theta


@pytest.mark.parametrize("name", ["base", "large"])
def test_the_recipe_of_bert_is_that_of_its_appendix(name: str) -> None:
    """Devlin et al. 2019, A.2, whose activations include the attention weights (BERT's code)."""
    config = load(f"bert/{name}")
    assert config.model.dropout == 0.1
    assert (config.train.steps, config.train.batch_size, config.train.seq_len) == (1_000_000, 256, 512)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay) == (1e-4, 10_000, 0.01)
    assert isinstance(optimizer.schedule, Linear)
    assert optimizer.schedule.final == 0
    assert isinstance(optimizer.method, AdamW)
    assert (optimizer.method.b1, optimizer.method.b2, optimizer.method.epsilon) == (0.9, 0.999, 1e-6)


@pytest.mark.parametrize(("name", "learning_rate", "warmup_steps"), [("base", 6e-4, 24_000), ("large", 4e-4, 30_000)])
def test_the_recipe_of_roberta_is_that_of_its_table(name: str, learning_rate: float, warmup_steps: int) -> None:
    """Liu et al. 2019, Table 9."""
    config = load(f"roberta/{name}")
    assert config.model.dropout == 0.1
    assert (config.train.steps, config.train.batch_size) == (500_000, 8192)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (learning_rate, warmup_steps)
    assert optimizer.weight_decay == 0.01
    assert isinstance(optimizer.method, AdamW)
    assert (optimizer.method.b1, optimizer.method.b2, optimizer.method.epsilon) == (0.9, 0.98, 1e-6)
