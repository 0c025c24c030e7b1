"""What trained editors learn from: passages of text, unrelated text, and parts that share no subject."""
