"""What is told about a run: cards in pictures, draft boards, seconds and memory."""
