"""One prompt, decoded and shown: `python -m experiments.ask`."""
