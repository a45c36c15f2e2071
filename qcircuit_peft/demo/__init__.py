"""Real pretrained models and labelled data that come inside PyPI packages, so the demo needs no hub."""
