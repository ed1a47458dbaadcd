"""LoRA files: names, matching, conversion, extraction and merging."""
