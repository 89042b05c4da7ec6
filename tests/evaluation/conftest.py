"""What the tests of `tango.evaluation` share: tiny checkpoints, real clips, and questions about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tango.evaluation import Question
from tango.toy import write_checkpoint
from tests import tiny, tiny_qwen
from tests.clips import write_clip

FRAMES = 6


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llava-ov/`, `llava-video/`, `qwen2.5-vl/`, clips `0.mp4` to `3.mp4`, and `broken.mp4`."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_checkpoint(folder / "llava-ov", image_size=tiny.IMAGE_SIZE, width=32)
    for name, model, tokenizer in (
        ("llava-video", tiny.llava_video(), tiny.tokenizer()),
        ("qwen2.5-vl", tiny_qwen.model("qwen2_5_vl"), tiny_qwen.tokenizer()),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for i, size in enumerate([(96, 64), (64, 64), (64, 96), (96, 64)]):
        write_clip(folder / f"{i}.mp4", num_frames=20 + 7 * i, size=size)
    (folder / "broken.mp4").write_bytes((folder / "0.mp4").read_bytes()[:900])
    return folder


def ask(video: Any, text: str = "What happens?", **options) -> Question:
    """A question about one clip."""
    content = [
        {"type": "video", "video": str(video) if isinstance(video, Path) else video},
        {"type": "text", "text": text},
    ]
    options = {"num_frames": FRAMES, "max_new_tokens": 6, **options}
    return Question(messages=[{"role": "user", "content": content}], **options)


@pytest.fixture(scope="session")
def questions(files: Path) -> list[Question]:
    """Six questions of unequal length; the third is about a video that cannot be read."""
    asked = [ask(files / f"{i % 4}.mp4", f"What is it{' now' * i}?") for i in range(5)]
    return [*asked[:2], ask(files / "broken.mp4"), *asked[2:]]
