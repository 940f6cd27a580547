"""The parts of the probe (`python -m experiments.probe`): what a pair costs, how far its models agree, what follows."""
