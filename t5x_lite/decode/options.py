"""Options of the command line for the settings of generation. Nothing here imports JAX."""

import argparse
from typing import Any

from t5x_lite.errors import UserError

DECODING_OPTIONS: dict[str, tuple[type, str]] = {
    "tokens": (int, "largest number of new tokens (default 128, or half of the positions of a model that has no more)"),
    "temperature": (float, "sampling temperature; 0 is greedy (default 1)"),
    "top_k": (int, "sample from the k most likely tokens"),
    "top_p": (float, "sample from the most likely tokens that together have this probability"),
    "min_p": (float, "sample from tokens with at least this share of the highest probability"),
    "repetition_penalty": (float, "values above 1 make tokens that have already occurred less likely"),
    "no_repeat_ngram_size": (int, "never generate a sequence of this many tokens twice"),
    "min_tokens": (int, "smallest number of new tokens; end tokens are banned before (default 0)"),
    "seed": (int, "random seed; the same seed gives the same text (default 0)"),
    "beams": (int, "number of hypotheses of a beam search, which replaces sampling"),
    "length_penalty": (float, "GNMT's length penalty of the beam search; 0 is none (default 0.6)"),
}
"""Options of `generate`: settings of `decode.sampling.Sampling` or `decode.beam.Beam`, which have the defaults."""


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options. One that is not on the command line is no attribute of the result."""
    parser.add_argument(
        "--stop", action="append", default=argparse.SUPPRESS, help="text at which generation ends; may be repeated"
    )
    parser.add_argument(
        "--stop-token",
        dest="stop_tokens",
        type=int,
        action="append",
        metavar="ID",
        default=argparse.SUPPRESS,
        help="token at which generation ends, as at the end of text; may be repeated",
    )
    for name, value_type, subject in (("logit", _text_bias, "TEXT"), ("token", _token_bias, "ID[,ID]")):
        parser.add_argument(
            f"--{name}-bias",
            dest="logit_bias",
            type=value_type,
            action="append",
            metavar=f"{subject}=BIAS",
            default=argparse.SUPPRESS,
            help=f"add BIAS to the score of {subject}, a sequence of tokens; -inf bans it; may be repeated",
        )
    for name, (value_type, description) in DECODING_OPTIONS.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=value_type, default=argparse.SUPPRESS, help=description)


def decoding_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings on a command line, for `decode.generate.decoding_settings`."""
    settings = {}
    for name in (*DECODING_OPTIONS, "stop", "stop_tokens"):
        if hasattr(options, name):
            settings[name] = getattr(options, name)
    if hasattr(options, "logit_bias"):
        biases: dict[str | tuple[int, ...], float] = {}
        for key, bias in options.logit_bias:
            if key in biases:
                raise UserError(f"logit_bias: {key!r} is set twice; remove one of them")
            biases[key] = bias
        settings["logit_bias"] = biases
    return settings


def _text_bias(argument: str) -> tuple[str, float]:
    """Return the text and the bias of TEXT=BIAS."""
    text, _, bias = argument.rpartition("=")
    try:
        return text, float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{argument!r}: expected =BIAS, a number or -inf, at the end") from None


def _token_bias(argument: str) -> tuple[tuple[int, ...], float]:
    """Return the tokens and the bias of ID,ID=BIAS."""
    ids, bias = _text_bias(argument)
    try:
        return tuple(map(int, ids.split(","))), bias
    except ValueError:
        raise argparse.ArgumentTypeError(f"{argument!r}: expected numbers of tokens, such as 42 or 7,42") from None
