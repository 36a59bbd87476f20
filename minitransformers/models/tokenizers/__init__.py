"""Tokenizers: text to ids and back, exactly as the models that were published were trained on."""
