"""Cascade Mini: a small Stable Cascade, trained from nothing on emoji. See README.md beside this file."""
