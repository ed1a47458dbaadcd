"""Model files: their headers, what they hold, their layouts, and networks built from them."""
