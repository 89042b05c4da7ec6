"""Print the folder for lmms-eval's --include_path."""

from pathlib import Path

print(Path(__file__).parent)
