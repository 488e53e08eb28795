"""Looking at what the engine does: what is kept, whether a gradient is right, the graph as a picture."""
