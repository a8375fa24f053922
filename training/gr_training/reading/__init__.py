"""What a reader is trained on: questions with their passages and answers, in batches."""
