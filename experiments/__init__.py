"""The paper's numerical study, run with lejax. Each file with a `main` is a command."""
