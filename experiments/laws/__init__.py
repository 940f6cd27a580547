"""The parts of the law-error command: what is asked, stored row pairs, the errors of every rule, how they are told."""
