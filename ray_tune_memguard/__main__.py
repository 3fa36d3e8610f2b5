"""``python -m ray_tune_memguard`` is the command ``ray-tune-memguard``."""

from ray_tune_memguard.cli.main import main

if __name__ == "__main__":
    main(prog_name="python -m ray_tune_memguard")
