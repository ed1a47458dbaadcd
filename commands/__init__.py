"""What users run by `studio.py`; knows the pack and the standard library."""
