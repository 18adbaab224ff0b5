"""Vision-language models that judge images, here or behind an endpoint, and rewards made of their answers."""
