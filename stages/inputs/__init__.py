"""What a user gives, made ready for the networks: canvas, hints, masks, pictures, prompt text."""
