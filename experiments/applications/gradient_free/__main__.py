"""The comparison as a command."""

import tyro

from experiments.applications.gradient_free import comparison

if __name__ == "__main__":
    comparison.main(tyro.cli(comparison.Config, description=comparison.__doc__))
