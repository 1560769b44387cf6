"""`devnet` and `python -m devnet_jax`: what `python -m devnet_jax.main` is, under shorter names."""

import runpy


def main() -> None:
    """Runs the command line as the main module, of which absl's help tells the flags."""
    runpy.run_module("devnet_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
