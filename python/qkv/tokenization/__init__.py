"""What qkv.text.Tokenizer is made of: the forms in which checkpoints keep a vocabulary, and chat templates."""
