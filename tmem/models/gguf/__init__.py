"""A model in one GGUF file, converted once to an ordinary Hugging Face folder."""
