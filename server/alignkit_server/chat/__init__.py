"""Chat and text completions, passed through to the engine of the model's base."""
