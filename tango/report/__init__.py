"""Results for people's eyes: text tables and pictures."""
