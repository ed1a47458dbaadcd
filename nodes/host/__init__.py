"""The shared model-management hooks: the only code of the pack that imports ``comfy.*``."""
