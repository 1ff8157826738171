"""Fine-tuning on conversations from the command line: train, answer, export."""

import json
from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from tests.conftest import REPOSITORY, Shell, lines

CHAT = REPOSITORY / "configs/finetune/chat.yaml"
TEMPLATE = (REPOSITORY / "configs/chat/tulu.jinja").read_text()


def write_conversations(path: Path) -> Path:
    """Questions that all have the answer `yes`."""
    with path.open("w") as file:
        for number in range(60):
            question = {"role": "user", "content": f"q {number}"}
            file.write(json.dumps({"messages": [question, {"role": "assistant", "content": "yes"}]}) + "\n")
    return path


@pytest.mark.slow
def test_a_run_learns_to_answer_and_its_export_has_the_template(
    tiny_run: Path, tmp_path: Path, t5x_lite: Shell
) -> None:
    chats = write_conversations(tmp_path / "chats.jsonl")
    run = tmp_path / "chat"
    settings = [
        f"adapt.from={tiny_run}",
        f"run_dir={run}",
        f"data.files={chats}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.packing=none",
        "data.validation_fraction=0.2",
        "optimizer.learning_rate=0.01",
        "optimizer.warmup_steps=2",
        "train={steps: 60, batch_size: 8, seq_len: 32, log_every_steps: 10}",
        "checkpoint.every_steps=60",
        "eval.every_steps=60",
    ]
    done = t5x_lite("train", CHAT, *settings)
    assert done.returncode == 0, done.stderr
    assert lines(run)[-1]["eval/loss"] < 0.1

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "q 99"}]}) + "\n")
    for prompt in (("--chat", "q 99"), ("--chat-file", prompts)):
        answer = t5x_lite("generate", run, *prompt, "--temperature", 0, "--tokens", 6)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip() == "yes"

    prompts.write_text(json.dumps({"messages": [{"role": "assistant", "content": "yes"}]}) + "\n")
    refused = t5x_lite("generate", run, "--chat-file", prompts)
    assert refused.returncode == 2
    assert "prompts.jsonl:1: the conversation ends with the assistant's turn" in refused.stderr

    refused = t5x_lite("generate", tiny_run, "--chat", "q 99")
    assert refused.returncode == 2
    assert "the tokenizer has no chat template" in refused.stderr

    transformers = pytest.importorskip("transformers")
    exported = t5x_lite("export", "hf", run, tmp_path / "hf")
    assert exported.returncode == 0, exported.stderr
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [{"role": "user", "content": "q 99"}, {"role": "assistant", "content": "yes"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "<|user|>\nq 99\n<|assistant|>\nyes</s>\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.parts=none", "data.chat_template=''"],
            r"is trained on conversations \(data.field=messages\): it needs data.parts=turns",
        ),
        (["data.parts=none"], "chat_template is for parts=turns"),
        (["data.end_of_document=true"], "parts=turns needs end_of_document=false"),
        (["data.validation_by=position"], "parts=turns needs end_of_document=false"),
    ],
)
def test_a_config_that_cannot_work_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(configuration.dump(configuration.load("llama/7b")))
    with pytest.raises(UserError, match=message):
        configuration.load(CHAT, [f"adapt.from={tmp_path}", *overrides])


def test_a_tokenizer_that_would_be_trained_has_no_template(tmp_path: Path) -> None:
    path = tmp_path / "scratch.yaml"
    path.write_text(f"base: [llama/7b, {CHAT}]\nadapt: null\n")
    with pytest.raises(UserError, match=r"data\.parts=turns needs a tokenizer with a chat template"):
        configuration.load(path, ["tokenizer=unigram"])
