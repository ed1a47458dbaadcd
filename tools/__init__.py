"""What `dev.py` is made of. Standard library only, except `launch.py`, which runs inside the environment."""
