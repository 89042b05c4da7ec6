"""From conversations and videos to model inputs: the processors of the families, and transformers' own, wrapped."""
