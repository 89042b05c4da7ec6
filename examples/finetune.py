"""Fine-tuning while pruning is on: `python examples/finetune.py`.

A tiny LLaVA-OneVision with random weights learns to name the colour of a clip, with the Hugging Face Trainer. All that
pruning asks for is the `with`; the Trainer, its optimizer and the model's own loss stay as they are.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset

import tango
from tango.toy import tiny_model, tiny_tokenizer

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "white": (1.0, 1.0, 1.0)}
IMAGE_SIZE, NUM_FRAMES = 112, 4
TOKENS = NUM_FRAMES * (IMAGE_SIZE // 14 // 2) ** 2 + 1  # placeholders of a clip: 4 x 4 a frame, one newline
IGNORED = -100  # label of tokens that the loss leaves out


class ColouredClips(Dataset):
    """Noisy clips of one colour each, with a question and its answer."""

    def __init__(self, tokenizer: Any, size: int, seed: int):
        self.tokenizer, self.size, self.seed = tokenizer, size, seed
        self.eos = tokenizer.eos_token_id

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = list(COLOURS)[index % len(COLOURS)]
        generator = torch.Generator().manual_seed(self.seed + index)
        noise = torch.randn(NUM_FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        video = self.tokenizer.convert_tokens_to_ids("<video>")
        prompt = [video] * TOKENS + self.tokenizer("Which colour? ")["input_ids"]
        answer = [*self.tokenizer(name)["input_ids"], self.eos]
        pixels = torch.tensor(COLOURS[name])[:, None, None] + 0.3 * noise
        return {"prompt": prompt, "answer": answer, "name": name, "pixels": pixels}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A padded batch; only the answers have labels."""
        longest = max(len(s["prompt"]) + len(s["answer"]) for s in samples)
        ids, labels, mask = [], [], []
        for sample in samples:
            row = sample["prompt"] + sample["answer"]
            rest = longest - len(row)
            ids.append(row + [self.tokenizer.pad_token_id] * rest)
            labels.append([IGNORED] * len(sample["prompt"]) + sample["answer"] + [IGNORED] * rest)
            mask.append([1] * len(row) + [0] * rest)
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
            "pixel_values_videos": torch.stack([sample["pixels"] for sample in samples]),
            "video_timestamps_s": [[float(t) for t in range(NUM_FRAMES)]] * len(samples),
        }


def train(model: Any, clips: ColouredClips, *, steps: int, folder: str) -> list[float]:
    """Train for some steps; the loss of each."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    options = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,  # the videos are not among the arguments that the Trainer would look for
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=options, train_dataset=clips, data_collator=clips.collate)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def accuracy(model: Any, clips: ColouredClips) -> float:
    """Share of clips whose colour is named."""
    right = 0
    for sample in (clips[i] for i in range(len(clips))):
        batch = clips.collate([{**sample, "answer": []}])
        del batch["labels"]
        output = model.generate(**batch, max_new_tokens=8, do_sample=False)
        text = clips.tokenizer.decode(output[0, len(sample["prompt"]) :], skip_special_tokens=True)
        right += text == sample["name"]
    return right / len(clips)


def run(*, steps: int, retention_ratio: float = 0.25, seed: int = 0) -> tuple[list[float], float]:
    """Train and test with pruning on: losses, and accuracy on clips that were not trained on."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, image_size=IMAGE_SIZE, width=32, seed=seed)
    seen, unseen = ColouredClips(tokenizer, 256, seed=1), ColouredClips(tokenizer, 16, seed=10_000)
    # Random weights come without the pooling head that saliency is usually taken from.
    with (
        tango.prune(model, "tango", retention_ratio=retention_ratio, saliency="attn") as pruning,
        tempfile.TemporaryDirectory() as folder,
    ):
        losses = train(model, seen, steps=steps, folder=folder)
        model.eval()
        right = accuracy(model, unseen)
        print(pruning.stats)
    return losses, right


def main() -> None:
    """Print how the loss falls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--retention-ratio", type=float, default=0.25)
    args = parser.parse_args()
    torch.set_num_threads(1)  # on tensors this small threads only wait for each other
    losses, right = run(steps=args.steps, retention_ratio=args.retention_ratio)
    for step in range(0, len(losses), 5):
        print(f"step {step:>3}  loss {losses[step]:.3f}")
    print(f"step {len(losses) - 1:>3}  loss {losses[-1]:.3f}")
    print(f"colours named right in unseen clips: {100 * right:.0f} %")


if __name__ == "__main__":
    main()
