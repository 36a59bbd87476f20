"""Linear maps, embeddings, activations, softmax and losses: what every later chapter is made of."""
