"""Write the data of docs/results/alignment.md: prompts with references, and comparisons, from public files.

python tools/reward_data.py arithmetic GPT3_TASKS OUT    # the arithmetic files of Brown et al. 2020
python tools/reward_data.py sentiment SST2 OUT           # train.tsv and dev.tsv: a sentence, a tab, 0 or 1
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

HELD_OUT = 200
"""Records at the end of each arithmetic file that are held out."""
FEW = 32
"""Training questions that a tiny model sees often enough to learn from its rewards."""
PROMPT_WORDS = 3
"""Words at the beginning of a sentence that are the prompt."""
ARITHMETIC = ("single_digit_three_ops", "two_digit_addition")


def main() -> None:
    """Write the files that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["arithmetic", "sentiment"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.kind == "arithmetic":
        write_arithmetic(arguments.source, arguments.out)
    else:
        write_sentiment(arguments.source, arguments.out)


def write_arithmetic(source: Path, out: Path) -> None:
    """Write `train.jsonl`, `dev.jsonl` and `dev.txt` of all files, and `few.jsonl`, some of the training records."""
    train: list[dict[str, str]] = []
    held_out: list[dict[str, str]] = []
    for name in ARITHMETIC:
        records = [json.loads(line) for line in (source / f"{name}.jsonl").read_text().splitlines()]
        train += records[:-HELD_OUT]
        held_out += records[-HELD_OUT:]
    write_records(out / "train.jsonl", train)
    write_records(out / "few.jsonl", train[:: len(train) // FEW][:FEW])
    write_records(out / "dev.jsonl", held_out)
    (out / "dev.txt").write_text("".join(record["context"] + record["completion"] for record in held_out))


def write_sentiment(source: Path, out: Path) -> None:
    """Write texts, comparisons of a positive with a negative sentence, and prompts, of both splits."""
    for split in ("train", "dev"):
        lines = (source / f"{split}.tsv").read_text().splitlines()
        pairs = [line.rsplit("\t", 1) for line in lines]
        texts = [text for text, _ in pairs]
        positive = [text for text, label in pairs if label == "1"]
        negative = [text for text, label in pairs if label == "0"]
        random.Random(0).shuffle(negative)
        comparisons = []
        for chosen, rejected in zip(positive, negative, strict=False):
            comparisons.append({"chosen": chosen, "rejected": rejected})
        prompts = [{"prompt": " ".join(text.split()[:PROMPT_WORDS])} for text in texts]
        write_records(out / f"{split}_comparisons.jsonl", comparisons)
        write_records(out / f"{split}_prompts.jsonl", prompts)
        write_records(out / f"{split}_texts.jsonl", [{"text": text} for text in texts])
        (out / f"{split}.txt").write_text("\n".join(texts) + "\n")


def write_records(path: Path, records: Iterable[Mapping[str, str]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()
